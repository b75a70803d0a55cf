//! Path routing: one host whose paths lead to several apps of its environment (`httpRouteConfigs`).
//!
//! **Invariant:** the first route that matches, in the order of the rules, decides; what none matches has no app.

use cove_model::{HttpRoute, HttpRouteRule, HttpRouteTarget, PathMatcher, ResourceId};
use serde::{Deserialize, Serialize};

/// The rules of one path-routed host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRoutes {
    /// The route configuration it was made of.
    pub config: ResourceId,
    /// The environment whose apps it leads to.
    pub environment: ResourceId,
    /// In the user's order.
    pub rules: Vec<HttpRouteRule>,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMatch<'r> {
    /// Who serves.
    pub target: &'r HttpRouteTarget,
    /// The path to ask the app for; `None`: as it came.
    pub path: Option<String>,
}

impl PathRoutes {
    /// What a path (without query) leads to; `random` chooses among weighted targets.
    #[must_use]
    pub fn find(&self, path: &str, random: u32) -> Option<PathMatch<'_>> {
        for rule in &self.rules {
            for route in &rule.routes {
                let Some(matched) = matched_bytes(route, path) else { continue };
                let target = choose(&rule.targets, random)?;
                let path = route.prefix_rewrite.as_ref().map(|rewrite| rewritten(rewrite, &path[matched..]));
                return Some(PathMatch { target, path });
            }
        }
        None
    }
}

/// The name under which a target is known in its environment: the app's, a revision's or a label's, in lower case.
#[must_use]
pub fn target_name(target: &HttpRouteTarget) -> String {
    let app = target.app.to_ascii_lowercase();
    match (&target.revision, &target.label) {
        (Some(revision), _) if revision.contains("--") => revision.to_ascii_lowercase(),
        (Some(suffix), _) => format!("{app}--{}", suffix.to_ascii_lowercase()),
        (None, Some(label)) => format!("{app}---{}", label.to_ascii_lowercase()),
        (None, None) => app,
    }
}

/// How many bytes of the path a route matches.
fn matched_bytes(route: &HttpRoute, path: &str) -> Option<usize> {
    let is_same = |part: &str, pattern: &str| {
        if route.is_case_sensitive { part == pattern } else { part.eq_ignore_ascii_case(pattern) }
    };
    let begins_with = |pattern: &str| path.get(..pattern.len()).is_some_and(|part| is_same(part, pattern));
    match &route.matcher {
        PathMatcher::Path(pattern) => is_same(path, pattern).then_some(path.len()),
        PathMatcher::Prefix(pattern) => begins_with(pattern).then_some(pattern.len()),
        PathMatcher::PathSeparatedPrefix(pattern) => {
            let pattern = pattern.strip_suffix('/').unwrap_or(pattern);
            let ends = matches!(path.as_bytes().get(pattern.len()), None | Some(b'/'));
            (begins_with(pattern) && ends).then_some(pattern.len())
        }
    }
}

/// The rewritten path: begins with one `/`, and the seam has no second one.
fn rewritten(rewrite: &str, rest: &str) -> String {
    let rest = if rewrite.ends_with('/') { rest.strip_prefix('/').unwrap_or(rest) } else { rest };
    let slash = if rewrite.starts_with('/') || rewrite.is_empty() && rest.starts_with('/') { "" } else { "/" };
    format!("{slash}{rewrite}{rest}")
}

fn choose(targets: &[HttpRouteTarget], random: u32) -> Option<&HttpRouteTarget> {
    let weight = |target: &HttpRouteTarget| u64::from(target.weight.unwrap_or(100));
    let total: u64 = targets.iter().map(weight).sum();
    let mut point = (u64::from(random) * total) >> 32;
    for target in targets {
        if point < weight(target) {
            return Some(target);
        }
        point -= weight(target);
    }
    targets.first()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(app: &str, weight: Option<u32>) -> HttpRouteTarget {
        HttpRouteTarget { app: app.to_owned(), revision: None, label: None, weight }
    }

    fn rule(matcher: PathMatcher, rewrite: Option<&str>, app: &str) -> HttpRouteRule {
        let route = HttpRoute { matcher, is_case_sensitive: true, prefix_rewrite: rewrite.map(str::to_owned) };
        HttpRouteRule { routes: vec![route], targets: vec![target(app, None)] }
    }

    fn routes(rules: Vec<HttpRouteRule>) -> PathRoutes {
        let id = |kind, name| ResourceId::resource("s", "g", kind, name).unwrap();
        PathRoutes {
            config: id("Microsoft.App/managedEnvironments", "routes"),
            environment: id("Microsoft.App/managedEnvironments", "env"),
            rules,
        }
    }

    #[test]
    fn the_first_route_that_matches_decides() {
        let mut insensitive = rule(PathMatcher::Prefix("/Case".into()), None, "case");
        insensitive.routes[0].is_case_sensitive = false;
        let routes = routes(vec![
            rule(PathMatcher::Path("/exact".into()), Some("/other"), "exact"),
            rule(PathMatcher::PathSeparatedPrefix("/1".into()), Some("/"), "one"),
            rule(PathMatcher::PathSeparatedPrefix("/two/".into()), Some("/v2"), "two"),
            rule(PathMatcher::Prefix("/pre".into()), Some(""), "pre"),
            rule(PathMatcher::Prefix("/prefix-is-never-reached".into()), None, "no"),
            insensitive,
        ]);
        for (path, expected) in [
            ("/exact", "exact /other"),
            ("/exact/", "none"),
            ("/Exact", "none"),
            ("/1", "one /"),
            ("/1/", "one /"),
            ("/1/a/b", "one /a/b"),
            ("/12", "none"),
            ("/two", "two /v2"),
            ("/two/x", "two /v2/x"),
            ("/prefix-is-never-reached", "pre /fix-is-never-reached"),
            ("/pre", "pre /"),
            ("/pre/x", "pre /x"),
            ("/cASE/x", "case -"),
            ("/", "none"),
            ("/é", "none"),
            ("*", "none"),
        ] {
            let found = routes.find(path, 0).map_or_else(
                || "none".to_owned(),
                |found| format!("{} {}", found.target.app, found.path.as_deref().unwrap_or("-")),
            );
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn weights_share_a_rule() {
        let mut shared = rule(PathMatcher::Prefix("/".into()), None, "a");
        shared.targets = vec![target("a", Some(75)), target("b", Some(25))];
        let routes = routes(vec![shared]);
        let hits = (0..1000_u32).filter(|step| routes.find("/", step * 4_294_967).unwrap().target.app == "b").count();
        assert!((249..=251).contains(&hits), "{hits}");
    }

    #[test]
    fn targets_are_known_by_name() {
        for (revision, label, expected) in [
            (None, None, "web"),
            (Some("web--V1"), None, "web--v1"),
            (Some("v1"), None, "web--v1"),
            (None, Some("Blue"), "web---blue"),
        ] {
            let target = HttpRouteTarget {
                revision: revision.map(str::to_owned),
                label: label.map(str::to_owned),
                ..target("Web", None)
            };
            assert_eq!(target_name(&target), expected);
        }
    }
}
