//! `metrics-api`: a number at a place in a document.
//!
//! The place is a path of keys and indexes joined by dots, as GJSON writes it (`a.b.0.c`, `a.#` for a length, `\.` for a
//! dot in a key); in a Prometheus document it is a metric with labels. Text is read as a Kubernetes quantity.
//!
//! **Invariant:** total: no document makes it panic or recurse without a bound.

mod exposition;
mod xml;

use serde_json::Value;

use super::counted::short;
use super::params::Params;
use super::{Metric, Unreadable};

/// Metadata of a `metrics-api` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsApi {
    /// Per replica.
    pub target: f64,
    /// The value must exceed this, default 0.
    pub activation: f64,
    /// How the document is written, default json.
    pub format: DocumentFormat,
    /// Where the number is.
    pub value_location: String,
}

/// `format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DocumentFormat {
    /// JSON.
    #[default]
    Json,
    /// XML; the path begins with the root element.
    Xml,
    /// YAML: read into a tree by the caller.
    Yaml,
    /// Prometheus' text exposition.
    Prometheus,
}

/// A document as fetched.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// The text, in the rule's format.
    Text(String),
    /// Already read, such as YAML.
    Tree(Value),
}

impl MetricsApi {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let words = [
            ("json", DocumentFormat::Json),
            ("xml", DocumentFormat::Xml),
            ("yaml", DocumentFormat::Yaml),
            ("prometheus", DocumentFormat::Prometheus),
        ];
        if params.flag("aggregateFromKubeServiceEndpoints", false) {
            params.wrong("aggregateFromKubeServiceEndpoints needs Kubernetes; give the url of one endpoint");
        }
        Self {
            target: params.target("targetValue", None),
            activation: params.activation("activationTargetValue"),
            format: params.choice("format", &words),
            value_location: params.required("valueLocation"),
        }
    }

    /// The number at the rule's place.
    pub fn measure(&self, document: &Document) -> Result<Metric, Unreadable> {
        let value = match (document, self.format) {
            (Document::Tree(tree), _) => number_at(tree, &self.value_location)?,
            (Document::Text(text), DocumentFormat::Json) => {
                let tree = serde_json::from_str(text)
                    .map_err(|error| Unreadable::new(format!("the document is no JSON: {error}")))?;
                number_at(&tree, &self.value_location)?
            }
            (Document::Text(text), DocumentFormat::Xml) => number_at(&xml::read(text)?, &self.value_location)?,
            (Document::Text(text), DocumentFormat::Prometheus) => exposition::value(text, &self.value_location)?,
            (Document::Text(_), DocumentFormat::Yaml) => {
                return Err(Unreadable::new("a YAML document must be read into a tree first"));
            }
        };
        Ok(Metric { value, active: value > self.activation })
    }
}

/// XML as a tree whose only member is the root element: attributes are `-name`, text beside them `#text`.
///
/// # Errors
/// It is no XML, is nested too deep, or has a document type.
pub fn xml_tree(text: &str) -> Result<Value, Unreadable> {
    xml::read(text)
}

/// The number at `path`.
pub fn number_at(tree: &Value, path: &str) -> Result<f64, Unreadable> {
    let mut at = tree;
    let keys = keys(path);
    for (index, key) in keys.iter().enumerate() {
        let next = match at {
            Value::Object(members) => members.get(key),
            Value::Array(items) if key == "#" && index + 1 == keys.len() => {
                return Ok(super::float(u64::try_from(items.len()).unwrap_or(u64::MAX)));
            }
            Value::Array(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        };
        at = next.ok_or_else(|| Unreadable::new(format!("there is nothing at `{path}`")))?;
    }
    let number = match at {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => quantity(text),
        _ => None,
    };
    number.ok_or_else(|| Unreadable::new(format!("what is at `{path}` is no number: {}", short(&at.to_string()))))
}

/// The keys of a path; a backslash takes the next character as it is.
fn keys(path: &str) -> Vec<String> {
    let mut keys = vec![String::new()];
    let mut characters = path.trim().chars();
    while let Some(character) = characters.next() {
        let last = keys.last_mut().expect("it never gets empty");
        match character {
            '.' => keys.push(String::new()),
            '\\' => last.extend(characters.next()),
            other => last.push(other),
        }
    }
    keys
}

/// A Kubernetes quantity: a number with a decimal (`m`, `k`, `M`, `G`, `T`, `P`, `E`) or binary (`Ki` … `Ei`) suffix.
pub fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let text = text.trim();
    let plain = |text: &str| {
        let numeric = text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'));
        if numeric { text.parse::<f64>().ok().filter(|number| number.is_finite()) } else { None }
    };
    plain(text).or_else(|| {
        let with = |(suffix, factor): &(&str, f64)| Some(plain(text.strip_suffix(suffix)?)? * factor);
        SUFFIXES.iter().find_map(with)
    })
}
