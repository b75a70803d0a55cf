//! The pages of `docs/scalers`, made from the catalogue and from `docs/scalers/scalers.toml`.
//!
//! `UPDATE_EXPECT=1 cargo test -p cove-scaling pages` writes them; without it, a page that is not what the catalogue says
//! fails. The example of a page is one rule in three spellings, and is checked as a request would be.
//!
//! **Invariant:** every scaler of the catalogue has a page, every key that has an effect has words, and no page is left of
//! a scaler that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use expect_test::expect_file;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::catalogue::later;
use super::{Key, Surroundings, keys_of, scalers, validate};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    /// How the overview begins.
    overview: String,
    /// Words for keys of many scalers.
    keys: BTreeMap<String, String>,
    scaler: BTreeMap<String, Page>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    /// The scaler whose words for keys are taken as well.
    like: Option<String>,
    title: String,
    measures: String,
    /// Key of the value per replica.
    target: Option<String>,
    activation: Option<String>,
    /// What one replica carries, where no key says it.
    carries: Option<String>,
    tested: String,
    #[serde(default)]
    metadata: toml::Table,
    /// Auth parameter to name of the secret.
    #[serde(default)]
    auth: BTreeMap<String, String>,
    /// Values of secrets that are no secret, for the example.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    #[serde(default)]
    identity: Option<String>,
    /// Whether metadata that is not in the catalogue is read as well.
    #[serde(default)]
    own_metadata: bool,
    #[serde(default)]
    keys: BTreeMap<String, String>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/scalers")
}

fn data() -> Data {
    let text = std::fs::read_to_string(folder().join("scalers.toml")).expect("docs/scalers/scalers.toml is there");
    toml::from_str(&text).expect("docs/scalers/scalers.toml can be read")
}

impl Data {
    /// The pages of scalers that are read.
    fn built(&self) -> impl Iterator<Item = (&'static str, &Page)> {
        scalers().filter_map(|scaler| Some((scaler, self.scaler.get(scaler)?)))
    }

    /// Meaning and unit of a key.
    fn words(&self, scaler: &str, key: &str) -> Option<&str> {
        let page = self.scaler.get(scaler)?;
        let alike = || self.words(page.like.as_deref()?, key);
        page.keys.get(key).map(String::as_str).or_else(alike).or_else(|| self.keys.get(key).map(String::as_str))
    }
}

impl Page {
    fn metadata(&self) -> Map<String, Value> {
        let text = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.metadata.iter().map(|(key, value)| (key.clone(), text(value).into())).collect()
    }

    /// The rule of the example.
    fn rule(&self, scaler: &str) -> Value {
        let mut custom = json!({ "type": scaler, "metadata": self.metadata() });
        if !self.auth.is_empty() {
            let entry =
                |(parameter, secret): (&String, &String)| json!({ "secretRef": secret, "triggerParameter": parameter });
            custom["auth"] = self.auth.iter().map(entry).collect();
        }
        if let Some(identity) = &self.identity {
            custom["identity"] = json!(identity);
        }
        json!({ "name": format!("{scaler}-rule"), "custom": custom })
    }

    fn secrets(&self) -> Vec<(&str, &str)> {
        let value = |secret: &String| self.secrets.get(secret).map_or("<VALUE>", String::as_str);
        self.auth.values().map(|secret| (secret.as_str(), value(secret))).collect()
    }

    fn yaml(&self, scaler: &str) -> String {
        let mut text = String::from("properties:\n");
        if !self.auth.is_empty() {
            text.push_str("  configuration:\n    secrets:\n");
            for (name, value) in self.secrets() {
                let _ = writeln!(text, "      - name: {name}\n        value: {}", quoted(value));
            }
        }
        let start = "  template:\n    scale:\n      minReplicas: 0\n      maxReplicas: 10\n      rules:\n";
        let _ = write!(text, "{start}        - name: {scaler}-rule\n          custom:\n            type: {scaler}\n");
        text.push_str("            metadata:\n");
        for (key, value) in self.metadata() {
            let _ = writeln!(text, "              {key}: {}", quoted(value.as_str().unwrap_or_default()));
        }
        if !self.auth.is_empty() {
            text.push_str("            auth:\n");
        }
        for (parameter, secret) in &self.auth {
            let _ =
                writeln!(text, "              - secretRef: {secret}\n                triggerParameter: {parameter}");
        }
        if let Some(identity) = &self.identity {
            let _ = writeln!(text, "            identity: {identity}");
        }
        text
    }

    fn arm(&self, scaler: &str) -> String {
        let mut properties = json!({});
        if !self.auth.is_empty() {
            let secret = |(name, value)| json!({ "name": name, "value": value });
            properties["configuration"] =
                json!({ "secrets": self.secrets().into_iter().map(secret).collect::<Vec<_>>() });
        }
        properties["template"] =
            json!({ "scale": { "minReplicas": 0, "maxReplicas": 10, "rules": [self.rule(scaler)] } });
        format!("{:#}\n", json!({ "properties": properties }))
    }

    fn command(&self, scaler: &str) -> String {
        let mut text = String::from("az containerapp create --name web --resource-group rg --environment env");
        text.push_str(" \\\n  --image <IMAGE> --min-replicas 0 --max-replicas 10");
        if !self.auth.is_empty() {
            text.push_str(" \\\n  --secrets");
            for (name, value) in self.secrets() {
                let _ = write!(text, " {}", shell(&format!("{name}={value}")));
            }
        }
        let _ = write!(text, " \\\n  --scale-rule-name {scaler}-rule --scale-rule-type {scaler}");
        text.push_str(" \\\n  --scale-rule-metadata");
        for (key, value) in self.metadata() {
            let pair = shell(&format!("{key}={}", value.as_str().unwrap_or_default()));
            let line = text.rsplit('\n').next().map_or(0, str::len);
            text.push_str(if line + pair.len() > 110 { " \\\n    " } else { " " });
            text.push_str(&pair);
        }
        if !self.auth.is_empty() {
            text.push_str(" \\\n  --scale-rule-auth");
            for (parameter, secret) in &self.auth {
                let _ = write!(text, " {parameter}={secret}");
            }
        }
        if let Some(identity) = &self.identity {
            let _ = write!(text, " \\\n  --scale-rule-identity {identity}");
        }
        text.push('\n');
        text
    }
}

/// Text in YAML that is text whatever is in it.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// One word of a shell.
fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn key_row(data: &Data, scaler: &str, key: &Key<'_>) -> String {
    let mut words =
        data.words(scaler, key.name).unwrap_or_else(|| panic!("no words for {scaler}.{}", key.name)).to_owned();
    if !key.allowed.is_empty() && !words.contains('`') {
        let _ = write!(words, ": `{}`", key.allowed.replace('|', "`, `"));
    }
    let mut from = Vec::new();
    if key.in_metadata {
        from.push("metadata".to_owned());
    }
    if key.from_env {
        from.push(format!("`{}FromEnv`", key.name));
    }
    if key.from_auth {
        from.push("auth".to_owned());
    }
    let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
    let required = if key.required { "yes" } else { "" };
    format!("| `{}` | {} | {default} | {required} | {} |\n", key.name, words.replace('|', "\\|"), from.join(", "))
}

fn page(data: &Data, scaler: &str) -> String {
    let page = &data.scaler[scaler];
    let mut text = format!("# `{scaler}`\n\n{}.\n\n{}\n\n", page.title, page.measures);
    if let Some(target) = &page.target {
        let _ = write!(text, "One replica is to carry `{target}`.");
        let activation = page.activation.as_ref();
        if let Some(activation) = activation {
            let _ = write!(text, " The app is awake while the value is above `{activation}` (0 unless given).");
        }
        text.push_str("\n\n");
    }
    if let Some(carries) = &page.carries {
        let _ = write!(text, "Value per replica: {carries}.\n\n");
    }
    let _ = write!(text, "Tested against: {}.\n\n## Example\n\n", page.tested);
    let _ = write!(text, "YAML:\n\n```yaml\n{}```\n\nARM:\n\n```json\n{}```\n\n", page.yaml(scaler), page.arm(scaler));
    let _ = write!(text, "Command line, `az` or `cove`:\n\n```sh\n{}```\n\n", page.command(scaler));
    text.push_str("## Keys\n\n| key | meaning and unit | default | required | from |\n|---|---|---|---|---|\n");
    let keys: Vec<Key<'_>> = keys_of(scaler).expect("the catalogue has it").collect();
    keys.iter().filter(|key| key.has_effect).for_each(|key| text.push_str(&key_row(data, scaler, key)));
    let without: Vec<String> = keys.iter().filter(|key| !key.has_effect).map(|key| format!("`{}`", key.name)).collect();
    if !without.is_empty() {
        let _ = write!(
            text,
            "\nKEDA has these keys too; here they do nothing, and the app's warnings say so: {}.\n",
            without.join(", ")
        );
    }
    text.push_str("\n[All scalers](README.md) · [Scaling](../guide/scaling.md)\n");
    text
}

fn overview(data: &Data) -> String {
    let mut text = data.overview.clone();
    text.push_str("\n| `custom.type` | what | value per replica | tested against |\n|---|---|---|---|\n");
    for scaler in scalers() {
        let page = &data.scaler[scaler];
        let keys: Vec<Key<'_>> = keys_of(scaler).expect("the catalogue has it").collect();
        let default = |name: &str| keys.iter().find(|key| key.name == name).map_or("", |key| key.default);
        let target = page.target.as_ref().map_or_else(
            || page.carries.clone().unwrap_or_default(),
            |name| match default(name) {
                "" => format!("`{name}`"),
                default => format!("`{name}` ({default})"),
            },
        );
        let _ = writeln!(text, "| [`{scaler}`]({scaler}.md) | {} | {target} | {} |", page.title, page.tested);
    }
    text
}

#[test]
fn pages_are_what_the_catalogue_says() {
    let data = data();
    let known: BTreeSet<&str> = scalers().collect();
    let named: BTreeSet<&str> = scalers().chain(later()).collect();
    for scaler in &known {
        let page = data.scaler.get(*scaler);
        assert!(page.is_none_or(|page| page.target.is_some() != page.carries.is_some()), "{scaler}: target or carries");
        assert!(data.scaler.contains_key(*scaler), "docs/scalers/scalers.toml has no entry of `{scaler}`");
    }
    for scaler in data.scaler.keys() {
        assert!(named.contains(scaler.as_str()), "docs/scalers/scalers.toml: the catalogue has no `{scaler}`");
    }
    for scaler in scalers() {
        expect_file![folder().join(format!("{scaler}.md"))].assert_eq(&page(&data, scaler));
    }
    expect_file![folder().join("README.md")].assert_eq(&overview(&data));
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(scaler) = name.strip_suffix(".md").filter(|name| *name != "README") else { continue };
        assert!(known.contains(scaler), "docs/scalers/{name} is of no scaler");
    }
}

#[test]
fn words_are_of_keys_that_there_are() {
    let data = data();
    for (scaler, page) in data.built() {
        let alike: Vec<&str> =
            scalers().filter(|other| *other == scaler || data.scaler[*other].like.as_deref() == Some(scaler)).collect();
        for key in page.keys.keys() {
            let is_known = alike.iter().any(|scaler| keys_of(scaler).unwrap().any(|known| known.name == key));
            assert!(is_known, "scalers.toml: {scaler} has no key {key}");
        }
        for key in page.target.iter().chain(&page.activation) {
            let is_known = keys_of(scaler).unwrap().any(|known| known.name == key && known.has_effect);
            assert!(is_known, "scalers.toml: {scaler} has no key {key}");
        }
    }
}

#[test]
fn every_example_is_a_rule_that_would_be_accepted() {
    let data = data();
    for (scaler, page) in data.built() {
        let around = Surroundings { secrets: page.auth.values().cloned().collect(), ..Surroundings::default() };
        let found = validate(&json!({ "rules": [page.rule(scaler)] }), &around);
        assert!(found.errors.is_empty() && found.hints.is_empty(), "{scaler}: {found:#?}");
        let is_expected = |message: &str| {
            (page.own_metadata && message.contains("is not read by"))
                || (matches!(scaler, "cpu" | "memory") && message.contains("never reach zero"))
        };
        for warning in &found.warnings {
            assert!(is_expected(&warning.message), "{scaler}: {warning:?}");
        }
    }
}
