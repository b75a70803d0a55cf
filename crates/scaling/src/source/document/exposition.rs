//! Prometheus' text exposition: the first sample of a metric whose labels include those of a selector.
//!
//! **Invariant:** a selector that says more than equality is an error; it is never read as less.

use super::super::Unreadable;

/// The value of the first sample that `selector` (`name{label="value"}`) matches.
pub(super) fn value(text: &str, selector: &str) -> Result<f64, Unreadable> {
    let wrong = || Unreadable::new(format!("`{selector}` is no metric such as `name{{label=\"value\"}}`"));
    let (name, wanted, rest) = series(selector).ok_or_else(wrong)?;
    if !rest.is_empty() || name.is_empty() {
        return Err(wrong());
    }
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some((metric, labels, rest)) = series(line) else { continue };
        if metric == name && wanted.iter().all(|label| labels.contains(label)) {
            let number = rest.split_whitespace().next().and_then(|number| number.parse().ok());
            return number.ok_or_else(|| Unreadable::new(format!("the sample of `{selector}` has no number")));
        }
    }
    Err(Unreadable::new(format!("there is no sample of `{selector}`")))
}

type Series<'a> = (&'a str, Vec<(&'a str, String)>, &'a str);

/// Name, labels, and what follows.
fn series(text: &str) -> Option<Series<'_>> {
    let text = text.trim();
    let end = text.find(|c: char| c == '{' || c.is_whitespace()).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let Some(mut rest) = rest.trim_start().strip_prefix('{') else {
        return Some((name, Vec::new(), rest.trim_start()));
    };
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start().trim_start_matches(',').trim_start();
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((name, labels, rest.trim_start()));
        }
        let (label, after) = rest.split_once('=')?;
        if label.trim_end().ends_with('!') {
            return None;
        }
        let after = after.trim_start().strip_prefix('"')?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((label.trim(), value));
        rest = &after[end..];
    }
}
