//! Templates and their parameters as az takes them on the command line.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{failure::Failure, file};

/// JSON with comments, as templates are written.
pub(super) fn jsonc(text: &str, path: &Path) -> Result<Value, Failure> {
    cove_template::parse_body(text.as_bytes())
        .map_err(|error| Failure::new(format!("`{}` is not a template: {error}", path.display())))
}

/// `name=value`, `name=@FILE`, `@FILE`, a file's path, or JSON; the last one of a name wins.
pub(super) fn read(given: &[String], template: &Value) -> Result<Value, Failure> {
    let mut parameters = Map::new();
    for argument in given.iter().map(|argument| argument.trim()).filter(|argument| !argument.is_empty()) {
        if argument.starts_with('{') {
            let value = serde_json::from_str(argument)
                .map_err(|error| Failure::usage(format!("--parameters is not JSON: {error}")))?;
            add_all(&mut parameters, value)?;
        } else if let Some(path) = argument.strip_prefix('@') {
            add_all(&mut parameters, jsonc(&file::text(Path::new(path))?, Path::new(path))?)?;
        } else if let Some((name, value)) = argument.split_once('=').filter(|_| !Path::new(argument).is_file()) {
            let value = match value.strip_prefix('@') {
                Some(path) => jsonc(&file::text(Path::new(path))?, Path::new(path))?,
                None => typed(name, value, template)?,
            };
            parameters.insert(name.to_owned(), json!({ "value": value }));
        } else {
            add_all(&mut parameters, jsonc(&file::text(Path::new(argument))?, Path::new(argument))?)?;
        }
    }
    Ok(Value::Object(parameters))
}

/// All parameters of a parameter file, or of an object of `{"name": {"value": …}}`.
fn add_all(parameters: &mut Map<String, Value>, mut file: Value) -> Result<(), Failure> {
    if file["parameters"].is_object() && file["parameters"]["value"].is_null() {
        file = file["parameters"].take();
    }
    let Value::Object(fields) = file else {
        return Err(Failure::usage("--parameters: the file holds no parameters"));
    };
    for (name, value) in fields {
        let is_wrapped = value["value"] != Value::Null || value["reference"].is_object();
        parameters.insert(name, if is_wrapped { value } else { json!({ "value": value }) });
    }
    Ok(())
}

/// A value as the template's parameter wants it: a text, or JSON for everything else.
fn typed(name: &str, text: &str, template: &Value) -> Result<Value, Failure> {
    let declared = template["parameters"].as_object();
    let found = declared.and_then(|all| all.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)));
    let kind = found.and_then(|(_, parameter)| parameter["type"].as_str()).unwrap_or("string").to_ascii_lowercase();
    match kind.as_str() {
        "string" | "securestring" => Ok(text.into()),
        // `True` is what Python people type
        "bool" if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") => {
            Ok(text.eq_ignore_ascii_case("true").into())
        }
        kind => serde_json::from_str(text)
            .map_err(|_| Failure::usage(format!("--parameters: `{name}` is of type {kind}, and `{text}` is not"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[&str]) -> Result<Value, String> {
        let template = json!({"parameters": {"n": {"type": "int"}, "on": {"type": "bool"}, "list": {"type": "array"},
            "text": {"type": "string"}}});
        let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
        read(&given, &template).map_err(|failure| failure.text)
    }

    #[test]
    fn values_have_the_types_of_the_template() {
        assert_eq!(
            check(&["n=3", "on=True", r#"list=["a"]"#, "text=5", "other=x=y"]).unwrap(),
            json!({"n": {"value": 3}, "on": {"value": true}, "list": {"value": ["a"]}, "text": {"value": "5"},
                "other": {"value": "x=y"}})
        );
        assert_eq!(
            check(&[r#"{"n": {"value": 1}, "text": "a"}"#, "n=2"]).unwrap(),
            json!({"n": {"value": 2}, "text": {"value": "a"}})
        );
        assert!(check(&["n=x"]).unwrap_err().contains("of type int"));
        assert!(check(&["/no/such/file"]).unwrap_err().contains("failed to read"));
    }

    #[test]
    fn files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, r#"{"$schema": "x", "parameters": {"text": {"value": "a"}} /* mine */}"#).unwrap();
        let expected = json!({"text": {"value": "a"}});
        assert_eq!(check(&[path.to_str().unwrap()]).unwrap(), expected);
        assert_eq!(check(&[&format!("@{}", path.display())]).unwrap(), expected);
    }
}
