//! What a service of a compose file says, read as az reads it.
//!
//! Published ports give an external ingress, exposed ones an internal ingress; `deploy.replicas` and `scale` are both limits
//! of the replicas; reservations are resources. An object `x-azure-container-app` is laid over the app's properties by merge
//! patch; `x-azure-ingress`, `x-azure-scale` and `x-azure-resources` over those parts of it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{client::merge, failure::Failure, file};

/// One service.
#[derive(Clone, Debug, Default)]
pub(super) struct Service {
    /// Name of the service and its app.
    pub(super) name: String,
    pub(super) image: Option<String>,
    pub(super) build: Option<Build>,
    /// Parts that Container Apps do not have.
    pub(super) ignored: Vec<String>,
    container: Value,
    ingress: Option<Value>,
    secrets: Vec<Value>,
    replicas: Option<u64>,
    overrides: Vec<(&'static str, Value)>,
}

/// Where its Dockerfile is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Build {
    pub(super) context: PathBuf,
    pub(super) dockerfile: Option<String>,
}

/// Keys of a service that are read; the others are named as left out.
const READ: [&str; 15] = [
    "image",
    "build",
    "container_name",
    "command",
    "entrypoint",
    "environment",
    "env_file",
    "ports",
    "expose",
    "deploy",
    "scale",
    "cpus",
    "mem_reservation",
    "secrets",
    "platform",
];

/// Overrides and the part of the app that each is laid over.
const OVERRIDES: [(&str, &str); 4] = [
    ("x-azure-container-app", ""),
    ("x-azure-ingress", "/configuration/ingress"),
    ("x-azure-scale", "/template/scale"),
    ("x-azure-resources", "/template/containers/0/resources"),
];

/// Variables for `${NAME}`: the environment's over those of `.env`.
pub(super) fn variables(folder: &Path) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    if let Ok(text) = std::fs::read_to_string(folder.join(".env")) {
        variables.extend(env_lines(&text));
    }
    variables.extend(std::env::vars());
    variables
}

fn env_lines(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='));
    let unquoted = |value: &str| {
        let value = value.trim();
        let inner = |quote: char| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
        inner('"').or_else(|| inner('\'')).unwrap_or(value).to_owned()
    };
    pairs.map(|(name, value)| (name.trim().to_owned(), unquoted(value))).collect()
}

/// Replaces `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:?error}` and `$$` in all texts.
pub(super) fn substitute(value: &mut Value, variables: &BTreeMap<String, String>) -> Result<(), Failure> {
    match value {
        Value::String(text) if text.contains('$') => *text = filled(text, variables)?,
        Value::Array(items) => {
            for item in items {
                substitute(item, variables)?;
            }
        }
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                substitute(field, variables)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn filled(text: &str, variables: &BTreeMap<String, String>) -> Result<String, Failure> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = after.find('}').ok_or_else(|| Failure::new(format!("`{text}` lacks a `}}`")))?;
            out.push_str(&expanded(&after[..end], variables)?);
            rest = &after[end + 1..];
        } else {
            let length = rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(rest.len());
            let name = &rest[..length];
            if name.is_empty() {
                out.push('$');
            }
            out.push_str(variables.get(name).map_or("", String::as_str));
            rest = &rest[length..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What stands between the braces.
fn expanded(body: &str, variables: &BTreeMap<String, String>) -> Result<String, Failure> {
    let length = body.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(body.len());
    let (name, operator) = body.split_at(length);
    let found = variables.get(name).cloned();
    let set = found.clone().filter(|value| !value.is_empty());
    let value = if let Some(default) = operator.strip_prefix(":-") {
        set.unwrap_or_else(|| default.to_owned())
    } else if let Some(default) = operator.strip_prefix('-') {
        found.unwrap_or_else(|| default.to_owned())
    } else if let Some(error) = operator.strip_prefix(":?") {
        set.ok_or_else(|| Failure::new(format!("`{name}` is not set: {error}")))?
    } else if let Some(error) = operator.strip_prefix('?') {
        found.ok_or_else(|| Failure::new(format!("`{name}` is not set: {error}")))?
    } else {
        found.unwrap_or_default()
    };
    Ok(value)
}

/// All services, in the order in which they depend on each other.
pub(super) fn read(compose: &Value, folder: &Path) -> Result<Vec<Service>, Failure> {
    let services = compose["services"].as_object().filter(|services| !services.is_empty());
    let services = services.ok_or_else(|| Failure::new("the compose file has no `services`"))?;
    let mut order: Vec<&String> = Vec::new();
    let mut left: Vec<&String> = services.keys().collect();
    while !left.is_empty() {
        let ready: Vec<&String> = left
            .iter()
            .copied()
            .filter(|name| needs(&services[name.as_str()]).iter().all(|need| !left.contains(&need)))
            .collect();
        if ready.is_empty() {
            let names: Vec<&str> = left.iter().map(|name| name.as_str()).collect();
            return Err(Failure::new(format!("services depend on each other in a circle: {}", names.join(", "))));
        }
        left.retain(|name| !ready.contains(name));
        order.extend(ready);
    }
    order.into_iter().map(|name| service(name, &services[name.as_str()], &compose["secrets"], folder)).collect()
}

fn needs(service: &Value) -> Vec<String> {
    match &service["depends_on"] {
        Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        Value::Object(names) => names.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

fn service(name: &str, service: &Value, secrets: &Value, folder: &Path) -> Result<Service, Failure> {
    let wrong = |what: &str| Failure::new(format!("service `{name}`: {what}"));
    if let Some(platform) = text(&service["platform"]).filter(|platform| !is_served(platform)) {
        return Err(wrong(&format!("platform `{platform}`; images are linux/amd64")));
    }
    let (image, build) = (text(&service["image"]), build_of(&service["build"], folder));
    if image.is_none() && build.is_none() {
        return Err(wrong("it has neither `image` nor `build`"));
    }
    let mut found = Service { name: name.to_owned(), image, build, ..Service::default() };
    let known = |key: &str| READ.contains(&key) || key == "depends_on" || key.starts_with("x-");
    let keys = service.as_object().into_iter().flat_map(|fields| fields.keys());
    found.ignored = keys.filter(|key| !known(key)).cloned().collect();
    let mut container = json!({ "name": text(&service["container_name"]).unwrap_or_else(|| name.to_owned()) });
    let (entrypoint, command) = (words(&service["entrypoint"]), words(&service["command"]));
    match (entrypoint, command) {
        (Some(entrypoint), command) => {
            container["command"] = json!(entrypoint);
            if let Some(command) = command {
                container["args"] = json!(command);
            }
        }
        (None, Some(command)) => container["args"] = json!(command),
        (None, None) => {}
    }
    if let Some(resources) = resources(service).map_err(|what| wrong(&what))? {
        container["resources"] = resources;
    }
    let mut env = environment(service, folder)?;
    for secret in service["secrets"].as_array().map_or(&[][..], Vec::as_slice) {
        let (name, value) = secret_of(secret, secrets, folder).map_err(|failure| wrong(&failure.text))?;
        env.push(json!({ "name": name, "secretRef": name }));
        found.secrets.push(json!({ "name": name, "value": value }));
    }
    if !env.is_empty() {
        container["env"] = Value::Array(env);
    }
    found.container = container;
    found.ingress = ingress(service).map_err(|what| wrong(&what))?;
    found.replicas = service["deploy"]["replicas"].as_u64().or_else(|| service["scale"].as_u64());
    if service["deploy"]["mode"] == "global" {
        found.replicas = Some(1);
    }
    let overrides = OVERRIDES.iter().filter(|(key, _)| service[*key].is_object());
    found.overrides = overrides.map(|(key, path)| (*path, service[*key].clone())).collect();
    Ok(found)
}

fn is_served(platform: &str) -> bool {
    matches!(platform.split('/').collect::<Vec<_>>().as_slice(), ["linux"] | ["linux", "amd64", ..])
}

fn build_of(build: &Value, folder: &Path) -> Option<Build> {
    let context = build.as_str().or_else(|| build["context"].as_str());
    let context = context.or_else(|| build.is_object().then_some("."))?;
    Some(Build { context: folder.join(context), dockerfile: text(&build["dockerfile"]) })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is_true) => Some(is_true.to_string()),
        _ => None,
    }
}

/// A list of words, or a line that is split as a shell splits it.
fn words(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => Some(items.iter().filter_map(text).collect()),
        Value::String(line) => Some(split(line)),
        _ => None,
    }
}

fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut is_open) = (String::new(), None, false);
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            ('\\', None | Some('"')) => word.extend(chars.next()),
            (char, Some(open)) if char == open => quote = None,
            ('"' | '\'', None) => (quote, is_open) = (Some(char), true),
            (char, None) if char.is_whitespace() => {
                if is_open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                is_open = false;
            }
            (char, _) => word.push(char),
        }
    }
    if is_open || !word.is_empty() {
        words.push(word);
    }
    words
}

/// `environment` over `env_file`; a name without a value takes the caller's.
fn environment(service: &Value, folder: &Path) -> Result<Vec<Value>, Failure> {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    let files = match &service["env_file"] {
        Value::Array(files) => files.iter().filter_map(|file| text(file).or_else(|| text(&file["path"]))).collect(),
        other => text(other).into_iter().collect::<Vec<_>>(),
    };
    for path in files {
        found.extend(env_lines(&file::text(&folder.join(path))?).into_iter().map(|(name, value)| (name, Some(value))));
    }
    match &service["environment"] {
        Value::Object(fields) => found.extend(fields.iter().map(|(name, value)| (name.clone(), text(value)))),
        Value::Array(items) => found.extend(items.iter().filter_map(text).map(|item| match item.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (item, None),
        })),
        _ => {}
    }
    let mut env: Vec<Value> = Vec::new();
    for (name, value) in found {
        let value = value.or_else(|| std::env::var(&name).ok()).ok_or_else(|| {
            Failure::new(format!("service: the variable `{name}` has no value"))
                .hint(format!("give it one in the file, or set {name} before the command"))
        })?;
        env.retain(|known| known["name"] != name.as_str());
        env.push(json!({ "name": name, "value": value }));
    }
    Ok(env)
}

/// Name and value of a secret; a name with underscores has dashes, as az makes them.
fn secret_of(secret: &Value, secrets: &Value, folder: &Path) -> Result<(String, String), Failure> {
    let source = secret.as_str().or_else(|| secret["source"].as_str()).unwrap_or_default();
    let target = secret["target"].as_str().unwrap_or(source);
    let declared = &secrets[source];
    let value = if let Some(path) = declared["file"].as_str() {
        file::text(&folder.join(path))?
    } else if let Some(name) = declared["environment"].as_str() {
        std::env::var(name).map_err(|_| Failure::new(format!("the secret `{source}` wants the variable `{name}`")))?
    } else {
        return Err(Failure::new(format!("the secret `{source}` has no `file` and no `environment`")));
    };
    Ok((target.replace('_', "-").to_lowercase(), value.trim_end_matches('\n').to_owned()))
}

/// Reservations; memory follows the cores where only they are named.
fn resources(service: &Value) -> Result<Option<Value>, String> {
    let reserved = &service["deploy"]["resources"]["reservations"];
    let cpu = text(&reserved["cpus"]).or_else(|| text(&service["cpus"]));
    let memory = text(&reserved["memory"]).or_else(|| text(&service["mem_reservation"]));
    let cpu = match cpu {
        Some(text) => Some(text.parse::<f64>().map_err(|_| format!("`{text}` is not a number of cores"))?),
        None => None,
    };
    let memory_gib = match memory {
        Some(text) => Some(gibibytes(&text).ok_or_else(|| format!("`{text}` is not a size, such as 512M"))?),
        None => None,
    };
    Ok(match (cpu, memory_gib) {
        (None, None) => None,
        (Some(cpu), None) => Some(json!({ "cpu": cpu, "memory": format!("{}Gi", cpu * 2.0) })),
        (Some(cpu), Some(memory)) => Some(json!({ "cpu": cpu, "memory": format!("{memory}Gi") })),
        (None, Some(memory)) => Some(json!({ "cpu": memory / 2.0, "memory": format!("{memory}Gi") })),
    })
}

fn gibibytes(size: &str) -> Option<f64> {
    let size = size.trim().to_ascii_lowercase();
    let digits = size.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(size.len());
    let number: f64 = size[..digits].parse().ok()?;
    let unit = match size[digits..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 1.0 / (1024.0 * 1024.0 * 1024.0),
        "k" => 1.0 / (1024.0 * 1024.0),
        "m" => 1.0 / 1024.0,
        "g" => 1.0,
        _ => return None,
    };
    Some(number * unit)
}

/// Published ports: external; exposed ones: internal. One port only, as in Azure.
fn ingress(service: &Value) -> Result<Option<Value>, String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let published: Vec<u16> = list(&service["ports"]).iter().filter_map(target_of).collect();
    let exposed: Vec<u16> = list(&service["expose"]).iter().filter_map(target_of).collect();
    let (ports, is_external) = if published.is_empty() { (exposed, false) } else { (published, true) };
    let wanted = service["x-azure-ingress"]["targetPort"].as_u64();
    match (ports.as_slice(), wanted) {
        ([], _) => Ok(None),
        ([port], _) => Ok(Some(json!({ "external": is_external, "targetPort": port, "transport": "auto" }))),
        (_, Some(port)) => Ok(Some(json!({ "external": is_external, "targetPort": port, "transport": "auto" }))),
        (several, None) => Err(format!(
            "several ports ({}): say which one is the ingress's with `x-azure-ingress: {{targetPort: {}}}`",
            several.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
            several[0]
        )),
    }
}

/// The container's port of `80`, `8080:80`, `127.0.0.1:8080:80/tcp` or `{target: 80}`.
fn target_of(port: &Value) -> Option<u16> {
    let port = port["target"].as_u64().map(|port| port.to_string()).or_else(|| text(port))?;
    port.rsplit(':').next()?.split('/').next()?.parse().ok()
}

impl Service {
    /// The body of its app, without environment and location.
    pub(super) fn body(&self, image: &str) -> Value {
        let mut container = self.container.clone();
        container["image"] = image.into();
        let mut properties = json!({
            "configuration": { "activeRevisionsMode": "single" },
            "template": { "containers": [container] },
        });
        if let Some(ingress) = &self.ingress {
            properties["configuration"]["ingress"] = ingress.clone();
        }
        if !self.secrets.is_empty() {
            properties["configuration"]["secrets"] = Value::Array(self.secrets.clone());
        }
        if let Some(replicas) = self.replicas {
            properties["template"]["scale"] = json!({ "minReplicas": replicas, "maxReplicas": replicas.max(1) });
        }
        for (path, patch) in &self.overrides {
            if properties.pointer(path).is_none()
                && let Some((parent, key)) = path.rsplit_once('/')
                && let Some(parent) = properties.pointer_mut(parent)
            {
                parent[key] = json!({});
            }
            if let Some(part) = properties.pointer_mut(path) {
                merge(part, patch);
            }
        }
        json!({ "properties": properties })
    }
}

#[cfg(test)]
mod tests;
