//! The table of routes: patterns like `/subscriptions/{subscription}/resourceGroups/{group}`, matched as Azure does.
//!
//! Fixed segments compare without case; `{name}` takes any one segment and keeps its case; doubled and trailing slashes
//! do not count. A fixed segment wins over a name at the same place.
//!
//! **Invariant:** matching looks at the path only; a path that exists under other methods is told apart from one that does not.

use std::{fmt, future::Future, sync::Arc};

use cove_arm::ArmError;
use futures_util::future::BoxFuture;
use http::Method;
use percent_encoding::percent_decode_str;

use crate::{
    answer::{Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
};

/// Segments looked at; a longer path is nothing.
const SEGMENTS_MAX: usize = 40;

/// What a request must bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: logins and metadata.
    Open,
    /// A token and an api-version.
    Arm,
    /// A token of `getAuthToken` or of a login; no api-version.
    Data,
}

type Handler = Arc<dyn Fn(ControlPlane, Call) -> BoxFuture<'static, Answer> + Send + Sync>;

/// What Azure has at a path and Cove has not: what it is, and what to do instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What is not there: begins a sentence.
    pub(crate) what: &'static str,
    /// What to do instead: ends the sentence, without a full stop.
    pub(crate) instead: &'static str,
}

/// One line of the table.
pub(crate) struct Route {
    method: Method,
    pattern: String,
    access: Access,
    handler: Handler,
    missing: Option<Missing>,
}

impl Route {
    fn new<F>(
        method: Method,
        pattern: String,
        access: Access,
        handler: impl Fn(ControlPlane, Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |plane, call| Box::pin(handler(plane, call)));
        Self { method, pattern, access, handler, missing: None }
    }

    /// A route of [`Access::Arm`] that answers 501 in its own words. A route that works takes its place.
    pub(crate) fn missing(method: Method, pattern: impl Into<String>, kind: String, missing: Missing) -> Self {
        let answer = move |_, _| {
            let error = ArmError::not_implemented(&kind, missing.what, missing.instead);
            async move { Err(Refusal::Arm(error)) }
        };
        Self { missing: Some(missing), ..Self::new(method, pattern.into(), Access::Arm, answer) }
    }

    /// A route of [`Access::Arm`].
    pub(crate) fn arm<F>(
        method: Method,
        pattern: impl Into<String>,
        handler: impl Fn(ControlPlane, Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::new(method, pattern.into(), Access::Arm, handler)
    }

    /// A route of [`Access::Open`].
    pub(crate) fn open<F>(
        method: Method,
        pattern: impl Into<String>,
        handler: impl Fn(ControlPlane, Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::new(method, pattern.into(), Access::Open, handler)
    }

    /// A route of [`Access::Data`].
    pub(crate) fn data<F>(
        method: Method,
        pattern: impl Into<String>,
        handler: impl Fn(ControlPlane, Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::new(method, pattern.into(), Access::Data, handler)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// A segment in lower case.
    Fixed(String),
    Name,
}

struct Entry {
    parts: Vec<Part>,
    access: Access,
    methods: Vec<Leaf>,
}

struct Leaf {
    method: Method,
    names: Vec<String>,
    handler: Handler,
    missing: Option<Missing>,
}

/// Whether an operation of Azure's is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A handler does it.
    Works,
    /// 501, with what instead.
    Missing(Missing),
    /// No route.
    Unknown,
}

/// All routes.
pub(crate) struct Table {
    entries: Vec<Entry>,
}

/// What a path and method lead to.
pub(crate) enum Found {
    /// A handler, what it needs, and the named segments.
    Handler { access: Access, handler: Handler, names: Vec<(String, String)> },
    /// The path exists, under these methods.
    OtherMethods { access: Access, allow: String },
    /// Nothing is there.
    Nothing,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("paths", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Table {
    /// The table of these routes; routes of one pattern come together whatever their order and the names in it.
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        for route in routes {
            let (parts, names) = parse(&route.pattern);
            let Route { method, access, handler, missing, .. } = route;
            let leaf = Leaf { method, names, handler, missing };
            let Some(entry) = entries.iter_mut().find(|entry| entry.parts == parts) else {
                entries.push(Entry { parts, access, methods: vec![leaf] });
                continue;
            };
            match entry.methods.iter_mut().find(|known| known.method == leaf.method) {
                Some(known) if known.missing.is_some() => *known = leaf,
                Some(_) if leaf.missing.is_some() => {}
                Some(_) | None => entry.methods.push(leaf),
            }
        }
        // `Fixed` sorts before `Name`, so the first match is the most exact one
        entries.sort_by(|a, b| a.parts.cmp(&b.parts));
        Self { entries }
    }

    /// Looks a path up; `segments` as [`segments`] gives them.
    pub(crate) fn find(&self, method: &Method, segments: &[String]) -> Found {
        let Some(entry) = self.entries.iter().find(|entry| matches(&entry.parts, segments)) else {
            return Found::Nothing;
        };
        if let Some(leaf) = entry.methods.iter().find(|leaf| leaf.method == *method) {
            let named = entry.parts.iter().zip(segments).filter(|(part, _)| **part == Part::Name);
            let names = leaf.names.iter().cloned().zip(named.map(|(_, segment)| segment.clone())).collect();
            return Found::Handler { access: entry.access, handler: Arc::clone(&leaf.handler), names };
        }
        let allow: Vec<&str> = entry.methods.iter().map(|leaf| leaf.method.as_str()).collect();
        Found::OtherMethods { access: entry.access, allow: allow.join(", ") }
    }

    /// Whether a method of a pattern is served; the names in the pattern do not matter.
    pub(crate) fn state(&self, method: &Method, pattern: &str) -> State {
        let (parts, _) = parse(pattern);
        let entry = self.entries.iter().find(|entry| entry.parts == parts);
        match entry.and_then(|entry| entry.methods.iter().find(|leaf| leaf.method == *method)) {
            None => State::Unknown,
            Some(leaf) => leaf.missing.map_or(State::Works, State::Missing),
        }
    }
}

fn parse(pattern: &str) -> (Vec<Part>, Vec<String>) {
    let mut names = Vec::new();
    let parts = pattern.split('/').filter(|part| !part.is_empty());
    let parts = parts.map(|part| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        Some(name) => {
            names.push(name.to_owned());
            Part::Name
        }
        None => Part::Fixed(part.to_ascii_lowercase()),
    });
    (parts.collect(), names)
}

fn matches(parts: &[Part], segments: &[String]) -> bool {
    parts.len() == segments.len()
        && parts.iter().zip(segments).all(|(part, segment)| match part {
            Part::Fixed(text) => text.eq_ignore_ascii_case(segment),
            Part::Name => true,
        })
}

/// The segments of a path, decoded; `None` when it is too long or a segment holds what no name may: a slash, a control
/// character, bytes that are no UTF-8.
pub(crate) fn segments(path: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let part = percent_decode_str(part).decode_utf8().ok()?;
        if found.len() == SEGMENTS_MAX || part.chars().any(|c| c == '/' || c.is_control()) {
            return None;
        }
        found.push(part.into_owned());
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let none = |_, _| async { Ok(crate::answer::empty(204)) };
        Table::new(vec![
            Route::open(Method::GET, "/{tenant}/token", none),
            Route::open(Method::GET, "/Subscriptions/token", none),
            Route::arm(Method::GET, "/subscriptions/{id}/groups/{group}", none),
            Route::arm(Method::PUT, "/subscriptions/{id}/groups/{group}", none),
        ])
    }

    fn find(method: &Method, path: &str) -> String {
        match segments(path).map(|segments| table().find(method, &segments)) {
            None => "refused".into(),
            Some(Found::Nothing) => "nothing".into(),
            Some(Found::OtherMethods { allow, .. }) => format!("allow {allow}"),
            Some(Found::Handler { names, access, .. }) => format!("{access:?} {names:?}"),
        }
    }

    #[test]
    fn paths_match_without_case_and_slashes() {
        let cases = [
            (Method::GET, "/SUBSCRIPTIONS/S/Groups/MyRG", r#"Arm [("id", "S"), ("group", "MyRG")]"#),
            (Method::GET, "//subscriptions//s/groups/g%20h/", r#"Arm [("id", "s"), ("group", "g h")]"#),
            (Method::DELETE, "/subscriptions/s/groups/g", "allow GET, PUT"),
            (Method::GET, "/subscriptions/token", "Open []"),
            (Method::GET, "/t/token", r#"Open [("tenant", "t")]"#),
            (Method::GET, "/subscriptions/s/groups", "nothing"),
            (Method::GET, "/subscriptions/s/groups/a%2Fb", "refused"),
            (Method::GET, "/subscriptions/s/groups/a%00", "refused"),
            (Method::GET, "/subscriptions/s/groups/%ff", "refused"),
            (Method::GET, &"/a".repeat(41), "refused"),
        ];
        for (method, path, expected) in cases {
            assert_eq!(find(&method, path), expected, "{method} {path}");
        }
    }
}
