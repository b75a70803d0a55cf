//! Results as people and programs read them: json, jsonc, yaml, yamlc, table, tsv, none, after `--query`.
//!
//! As az: JSON by default, `resourceGroup` beside every `id`, table columns per noun. On a terminal lists and resources
//! are tables by default.

pub(crate) mod columns;
mod table;

use serde_json::Value;

use crate::{failure::Failure, text};
pub(crate) use columns::View;
pub(crate) use table::Table;

/// Formats of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Json,
    /// JSON with colours on a terminal.
    Jsonc,
    Table,
    Tsv,
    Yaml,
    /// The same as yaml.
    Yamlc,
    None,
}

/// Where and how results are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    pub(crate) format: Option<Format>,
    pub(crate) query: Option<String>,
}

impl Output {
    /// Whether the result is a table for people.
    pub(crate) fn is_table(&self) -> bool {
        self.format() == Format::Table && self.query.is_none()
    }

    /// Whether a form was asked for by a flag.
    pub(crate) fn is_asked(&self) -> bool {
        self.format.is_some() || self.query.is_some()
    }

    fn format(&self) -> Format {
        self.format.unwrap_or_else(|| match self.query {
            None if text::stdout_is_terminal() => Format::Table,
            _ => Format::Json,
        })
    }

    /// Writes a result to stdout.
    pub(crate) fn print(&self, value: Value, view: View) -> Result<(), Failure> {
        text::out(&self.render(value, view, jiff::Timestamp::now())?);
        Ok(())
    }

    /// The text of a result.
    pub(crate) fn render(&self, mut value: Value, view: View, now: jiff::Timestamp) -> Result<String, Failure> {
        add_resource_group(&mut value);
        let mut order = None;
        if let Some(query) = &self.query {
            (value, order) = search(query, &value)?;
        }
        if value.is_null() {
            return Ok(String::new());
        }
        let text = match self.format() {
            Format::None => String::new(),
            Format::Json => pretty(&value),
            Format::Jsonc if text::stdout_is_terminal() => coloured(&pretty(&value)),
            Format::Jsonc => pretty(&value),
            Format::Yaml | Format::Yamlc => yaml(&value)?,
            Format::Tsv => tsv(&value, order.as_deref()),
            Format::Table if self.query.is_some() => table::automatic(&value, order.as_deref()).render(),
            Format::Table => view.table(&value, now).render(),
        };
        Ok(text)
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn yaml(value: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value)
        .map_err(|error| Failure::new(format!("the result cannot be written as YAML: {error}")))
}

/// The result of a JMESPath query, and the keys of its last hash in the order they were written.
fn search(query: &str, value: &Value) -> Result<(Value, Option<Vec<String>>), Failure> {
    let compiled = jmespath::compile(query)
        .map_err(|error| Failure::usage(format!("--query `{query}`: {}", error.to_string().replace('\n', " "))))?;
    let found = compiled
        .search(value)
        .map_err(|error| Failure::new(format!("--query `{query}`: {}", error.to_string().replace('\n', " "))))?;
    let found = serde_json::to_value(&*found).map_err(|error| Failure::new(format!("--query `{query}`: {error}")))?;
    Ok((found, hash_keys(compiled.as_ast())))
}

fn hash_keys(ast: &jmespath::ast::Ast) -> Option<Vec<String>> {
    use jmespath::ast::Ast;
    match ast {
        Ast::MultiHash { elements, .. } => Some(elements.iter().map(|pair| pair.key.clone()).collect()),
        Ast::Projection { rhs, .. } | Ast::Subexpr { rhs, .. } => hash_keys(rhs),
        Ast::Flatten { node, .. } => hash_keys(node),
        _ => None,
    }
}

/// az's table-separated values: a row per item, nested lists as their length, nested objects as nothing.
fn tsv(value: &Value, order: Option<&[String]>) -> String {
    let rows = match value {
        Value::Array(items) => items.iter().collect(),
        other => vec![other],
    };
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = match row {
            Value::Object(fields) => match order {
                Some(order) => order.iter().map(|key| tsv_cell(fields.get(key).unwrap_or(&Value::Null))).collect(),
                None => fields.values().map(tsv_cell).collect(),
            },
            Value::Array(items) => items.iter().map(tsv_cell).collect(),
            Value::Bool(is_true) => vec![is_true.to_string()],
            other => vec![tsv_cell(other)],
        };
        text.push_str(&cells.join("\t"));
        text.push('\n');
    }
    text
}

fn tsv_cell(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => items.len().to_string(),
        Value::Object(_) => String::new(),
    }
}

/// az shows the group of every resource beside its id.
fn add_resource_group(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(add_resource_group),
        Value::Object(fields) => {
            let group = fields.get("id").and_then(Value::as_str).and_then(group_of).map(str::to_owned);
            if let Some(group) = group
                && !fields.contains_key("resourceGroup")
            {
                fields.insert("resourceGroup".to_owned(), group.into());
            }
            fields.values_mut().for_each(add_resource_group);
        }
        _ => {}
    }
}

/// The group in the id of a resource; none for a group itself.
pub(crate) fn group_of(id: &str) -> Option<&str> {
    let mut segments = id.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case("resourceGroups"))?;
    let group = segments.next()?;
    segments.next().map(|_| group)
}

/// Keys blue, strings green, the rest as it is.
fn coloured(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    for line in json.split_inclusive('\n') {
        let body = line.trim_start();
        let (indent, rest) = line.split_at(line.len() - body.len());
        text.push_str(indent);
        let key_end = body.starts_with('"').then(|| body.find("\": ")).flatten();
        let (key, value) = key_end.map_or(("", rest), |end| rest.split_at(end + 1));
        if !key.is_empty() {
            text.push_str(&format!("\x1b[94m{key}\x1b[0m"));
        }
        let quoted = value.trim_start_matches(": ");
        if quoted.starts_with('"') {
            let end = quoted.rfind('"').unwrap_or(0) + 1;
            text.push_str(&value[..value.len() - quoted.len()]);
            text.push_str(&format!("\x1b[32m{}\x1b[0m{}", &quoted[..end], &quoted[end..]));
        } else {
            text.push_str(value);
        }
    }
    text
}

#[cfg(test)]
mod tests;
