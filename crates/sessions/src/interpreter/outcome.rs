//! What became of code, as a session says it.
//!
//! What a session shows is passed on, hardly ever looked into; it stays the text that it came as. A tree of it would take many
//! times its length, which the session could choose to be all zeros and commas.
//!
//! **Invariant:** no list or object of a session is read further than its limit, whatever its length.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::room::Room;

/// Rich outputs of one execution, as many as the session's server keeps.
const OUTPUTS_MAX: usize = 64;
/// Lines of a traceback, as many as it keeps.
const TRACEBACK_MAX: usize = 200;
/// Media types of one output; no notebook has nearly as many.
const KINDS_MAX: usize = 64;
/// Images that a result may be, with their names.
const IMAGES: [(&str, &str); 3] = [("image/png", "png"), ("image/jpeg", "jpeg"), ("image/svg+xml", "svg")];

/// What became of an execution.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    #[serde(rename = "exitCode", default)]
    pub(crate) exit_code: Option<i64>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    #[serde(default)]
    pub(crate) result: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "first::<_, _, OUTPUTS_MAX>")]
    pub(crate) outputs: Vec<Box<RawValue>>,
    #[serde(default)]
    pub(crate) error: Option<Failure>,
    #[serde(default)]
    pub(crate) milliseconds: u64,
    /// What this takes of the memory for answers.
    #[serde(skip)]
    pub(crate) room: Room,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Status {
    Succeeded,
    Failed,
    TimedOut,
}

/// The error that ended code.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Failure {
    pub(crate) ename: String,
    pub(crate) evalue: String,
    #[serde(deserialize_with = "first::<_, _, TRACEBACK_MAX>")]
    pub(crate) traceback: Vec<String>,
}

/// The value of an execution: an image, a JSON value or a text; null where there is none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Worth<'a> {
    Image {
        #[serde(rename = "type")]
        kind: &'static str,
        format: &'static str,
        base64_data: String,
    },
    Json(&'a RawValue),
    Nothing,
}

impl Outcome {
    /// The value of the code.
    pub(super) fn worth(&self) -> Worth<'_> {
        let image = |bundle: Bundle<'_>| {
            IMAGES.into_iter().find_map(|(kind, format)| {
                let data: String = serde_json::from_str(bundle.get(kind)?.get()).ok()?;
                Some(Worth::Image { kind: "image", format, base64_data: data.trim().to_owned() })
            })
        };
        // a plot is shown, not returned: what is returned beside it is the text of some object
        if let Some(image) = self.outputs.iter().rev().find_map(|output| image(Bundle::of(output)?)) {
            return image;
        }
        let bundle = self.result.as_deref().and_then(Bundle::of);
        let json = bundle.and_then(|bundle| bundle.get("application/json").or_else(|| bundle.get("text/plain")));
        json.map_or(Worth::Nothing, Worth::Json)
    }
}

/// A rich output: media types, each with what it is in that.
pub(crate) struct Bundle<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Bundle<'a> {
    /// The first [`KINDS_MAX`] of an output; nothing where it is no object.
    pub(crate) fn of(output: &'a RawValue) -> Option<Self> {
        serde_json::from_str(output.get()).ok()
    }

    pub(crate) fn get(&self, kind: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(known, _)| known == kind).map(|(_, part)| *part)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(kind, part)| (kind.as_str(), *part))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bundle<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Kinds;

        impl<'de> Visitor<'de> for Kinds {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of media types")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut kinds = Vec::new();
                while kinds.len() < KINDS_MAX {
                    let Some(kind) = map.next_entry()? else { return Ok(kinds) };
                    kinds.push(kind);
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(kinds)
            }
        }

        from.deserialize_map(Kinds).map(Self)
    }
}

/// The first `MAX` of a list; the others are read and dropped.
pub(super) fn first<'de, T, D, const MAX: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct First<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for First<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < MAX {
                let Some(one) = list.next_element()? else { return Ok(kept) };
                kept.push(one);
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    from.deserialize_seq(First::<T, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_to_their_limits() {
        let numbers = vec!["0"; 100_000].join(",");
        let texts = vec!["\"\""; 10_000].join(",");
        let said = format!(
            r#"{{"status":"Failed","stdout":"","stderr":"","outputs":[{numbers}],"result":[{numbers}],
            "error":{{"ename":"E","evalue":"","traceback":[{texts}]}},"exitCode":3}}"#
        );
        let outcome: Outcome = serde_json::from_str(&said).unwrap();
        assert_eq!(outcome.outputs.len(), OUTPUTS_MAX);
        assert_eq!(outcome.error.unwrap().traceback.len(), TRACEBACK_MAX);
        assert_eq!(outcome.exit_code, Some(3), "what follows is read");
        assert_eq!(outcome.result.unwrap().get().len(), numbers.len() + 2);
        let kinds: Vec<String> = (0..1000).map(|number| format!("\"{number}\":{number}")).collect();
        let bundle = RawValue::from_string(format!("{{{}}}", kinds.join(","))).unwrap();
        assert_eq!(Bundle::of(&bundle).unwrap().iter().count(), KINDS_MAX);
    }
}
