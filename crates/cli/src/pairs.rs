//! Lists of `key=value` as az takes them.

use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// Prefix of an environment variable whose value is a secret's.
const SECRET_REF: &str = "secretref:";

/// `key=value` of `flag`.
pub(crate) fn split<'a>(pair: &'a str, flag: &str) -> Result<(&'a str, &'a str), Failure> {
    match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key, value)),
        _ => Err(Failure::usage(format!("{flag}: `{pair}` is not `key=value`"))),
    }
}

/// An object of texts.
pub(crate) fn object(pairs: &[String], flag: &str) -> Result<Value, Failure> {
    let mut fields = Map::new();
    for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
        let (key, value) = split(pair, flag)?;
        fields.insert(key.to_owned(), value.into());
    }
    Ok(Value::Object(fields))
}

/// Environment variables: `K=V` and `K=secretref:NAME`. One empty text means none.
pub(crate) fn environment(pairs: &[String], flag: &str) -> Result<Vec<Value>, Failure> {
    let mut variables: Vec<Value> = Vec::new();
    for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
        let (key, value) = split(pair, flag)?;
        if variables.iter().any(|variable| variable["name"] == key) {
            return Err(Failure::usage(format!("{flag}: `{key}` is given twice")));
        }
        variables.push(match value.strip_prefix(SECRET_REF) {
            Some(secret) => json!({ "name": key, "secretRef": secret }),
            None => json!({ "name": key, "value": value }),
        });
    }
    Ok(variables)
}

/// Secrets: `name=value` and `name=keyvaultref:URL,identityref:ID`.
pub(crate) fn secrets(pairs: &[String]) -> Result<Vec<Value>, Failure> {
    pairs
        .iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = split(pair, "--secrets")?;
            let Some(reference) = value.strip_prefix("keyvaultref:") else {
                return Ok(json!({ "name": name, "value": value }));
            };
            let (url, identity) = reference.split_once(",identityref:").ok_or_else(|| {
                Failure::usage(format!("--secrets: `{pair}` is not `{name}=keyvaultref:URL,identityref:IDENTITY`"))
            })?;
            Ok(json!({ "name": name, "keyVaultUrl": url, "identity": identity }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &[&str]) -> Vec<String> {
        text.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn variables_hold_texts_or_secrets() {
        let found = environment(&list(&["A=1", "B=secretref:pw", "C=x=y", "D="]), "--env-vars").unwrap();
        assert_eq!(
            Value::Array(found),
            json!([
                {"name": "A", "value": "1"},
                {"name": "B", "secretRef": "pw"},
                {"name": "C", "value": "x=y"},
                {"name": "D", "value": ""},
            ])
        );
        assert!(environment(&list(&[""]), "--env-vars").unwrap().is_empty());
        for (bad, says) in
            [(&["A"][..], "`A` is not `key=value`"), (&["=1"], "`=1`"), (&["A=1", "A=2"], "`A` is given twice")]
        {
            let failure = environment(&list(bad), "--env-vars").unwrap_err();
            assert!(failure.text.contains(says), "{}", failure.text);
        }
    }

    #[test]
    fn secrets_may_live_in_a_key_vault() {
        let found = secrets(&list(&["a=b", "c=keyvaultref:https://v/secrets/x,identityref:system"])).unwrap();
        let vault = json!({"name": "c", "keyVaultUrl": "https://v/secrets/x", "identity": "system"});
        assert_eq!(found, [json!({"name": "a", "value": "b"}), vault]);
        assert!(secrets(&list(&["c=keyvaultref:https://v"])).is_err());
    }
}
