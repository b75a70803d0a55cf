//! Tables: a header, dashes, rows, two spaces between columns.

use serde_json::Value;

/// Keys that a table made from arbitrary objects leaves out, as az's.
const SKIPPED: [&str; 3] = ["id", "type", "etag"];

/// Rows of text under titles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    titles: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(titles: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { titles: titles.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row, a cell per title.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell.into())).collect());
    }

    /// The text; nothing when there are no rows.
    pub(crate) fn render(&self) -> String {
        if self.rows.is_empty() || self.titles.is_empty() {
            return String::new();
        }
        let widths: Vec<usize> = (0..self.titles.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.chain([&self.titles[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut text = String::new();
        for row in [&self.titles, &dashes].into_iter().chain(&self.rows) {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A table of whatever a query gave.
pub(super) fn automatic(value: &Value, order: Option<&[String]>) -> Table {
    let items = match value {
        Value::Array(items) => items.iter().collect(),
        other => vec![other],
    };
    let mut titles: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<(String, String)>> = Vec::new();
    for item in items {
        let cells: Vec<(String, String)> = match item {
            Value::Object(fields) => {
                let keys: Vec<&String> = order.map_or_else(|| fields.keys().collect(), |order| order.iter().collect());
                let shown = keys.into_iter().filter(|key| !SKIPPED.contains(&key.as_str()));
                shown.filter_map(|key| Some((capitalised(key), cell(fields.get(key)?)?))).collect()
            }
            Value::Array(items) => {
                let cells = items.iter().enumerate();
                cells.map(|(index, item)| (format!("Column{}", index + 1), cell(item).unwrap_or_default())).collect()
            }
            other => vec![("Result".to_owned(), cell(other).unwrap_or_default())],
        };
        for (title, _) in &cells {
            if !titles.contains(title) {
                titles.push(title.clone());
            }
        }
        rows.push(cells);
    }
    let mut table = Table::new(titles.clone());
    for cells in rows {
        let find = |title: &String| cells.iter().find(|(name, _)| name == title).map_or("", |(_, text)| text);
        table.row(titles.iter().map(find));
    }
    table
}

/// A scalar's text; none for what a cell cannot hold.
fn cell(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn capitalised(key: &str) -> String {
    let mut chars = key.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Control characters would move the cursor.
fn one_line(text: &str) -> String {
    if text.contains(char::is_control) {
        return text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    }
    text.to_owned()
}
