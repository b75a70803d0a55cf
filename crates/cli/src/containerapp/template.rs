//! Flags of the template and the JSON that az makes of them.
//!
//! **Invariant:** a flag that was not given appears nowhere in the body.

use serde_json::{Map, Value, json};

use super::environment::profile;
use crate::{failure::Failure, pairs};

/// One container.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerArgs {
    /// Image, such as `registry/name:tag`.
    #[arg(short, long)]
    pub(crate) image: Option<String>,
    /// Name of the container [default: the app's].
    #[arg(long, value_name = "NAME")]
    pub(crate) container_name: Option<String>,
    /// Cores, such as 0.5.
    #[arg(long, value_name = "CORES")]
    pub(crate) cpu: Option<f64>,
    /// Memory, such as `1.0Gi`.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Program instead of the image's; one empty text for the image's.
    #[arg(long, num_args = 0.., value_name = "WORD")]
    pub(crate) command: Option<Vec<String>>,
    /// Arguments instead of the image's.
    #[arg(long, num_args = 0.., value_name = "WORD")]
    pub(crate) args: Option<Vec<String>>,
    /// nvidia-a100 or nvidia-t4: the workload profile that has it is used, and added where it is missing.
    #[arg(long, value_name = "KIND")]
    pub(crate) gpu_type: Option<String>,
    /// GPUs of the workload profile [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) gpu_count: Option<u32>,
}

/// Limits and one rule.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Scale")]
pub(crate) struct ScaleArgs {
    /// Fewest replicas, 0..=1000.
    #[arg(long, value_name = "N")]
    pub(crate) min_replicas: Option<i64>,
    /// Most replicas, 1..=1000.
    #[arg(long, value_name = "N")]
    pub(crate) max_replicas: Option<i64>,
    /// Name of a scale rule.
    #[arg(long, alias = "srn", value_name = "NAME")]
    pub(crate) scale_rule_name: Option<String>,
    /// http, tcp, or the type of a custom rule, such as azure-queue [default: http].
    #[arg(long, alias = "srt", value_name = "TYPE")]
    pub(crate) scale_rule_type: Option<String>,
    /// Type of a rule of `--scale-rule-type custom`.
    #[arg(long, value_name = "TYPE")]
    pub(crate) scale_rule_custom_type: Option<String>,
    /// Requests or connections per replica, for http and tcp rules.
    #[arg(long, aliases = ["srhc", "scale-rule-tcp-concurrency", "srtc"], value_name = "N")]
    pub(crate) scale_rule_http_concurrency: Option<u32>,
    /// Metadata of the rule: `key=value …`
    #[arg(long, alias = "srm", num_args = 1.., value_name = "KEY=VALUE")]
    pub(crate) scale_rule_metadata: Vec<String>,
    /// Secrets of the rule: `parameter=secret …`
    #[arg(long, alias = "sra", num_args = 1.., value_name = "PARAMETER=SECRET")]
    pub(crate) scale_rule_auth: Vec<String>,
    /// Identity of the rule: `system` or the id of one.
    #[arg(long, alias = "sri", value_name = "ID")]
    pub(crate) scale_rule_identity: Option<String>,
    /// Seconds without activity before the last replicas go.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) cooldown_period: Option<u32>,
    /// Seconds between two readings of an event rule.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) polling_interval: Option<u32>,
    /// How counts are decided: `aca`, as Azure documents it, or `fast`, by open requests within a second; `default`
    /// takes the server's.
    #[arg(long, value_parser = ["aca", "fast", "default"])]
    pub(crate) scale_mode: Option<String>,
    /// What the last replica does when nothing needs it: it ends (`zero`), or stays without running (`frozen`).
    #[arg(long, value_parser = ["zero", "frozen"])]
    pub(crate) scale_idle: Option<String>,
    /// Constants of the autoscaler: `scaleDownWindowSeconds=60 stepFloor=8 fallback.replicas=2 …`; `KEY=` takes one back.
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    pub(crate) scale_setting: Vec<String>,
}

/// Numbers as az sends them: `0.5`, `1.0`.
fn cores(cpu: f64) -> Value {
    json!(cpu)
}

/// A new container.
pub(crate) fn container(args: &ContainerArgs, name: &str, env: &[Value]) -> Value {
    let mut container = json!({ "name": args.container_name.as_deref().unwrap_or(name) });
    apply(args, &mut container);
    if !env.is_empty() {
        container["env"] = Value::Array(env.to_vec());
    }
    container
}

/// Lays the flags that were given over a container.
pub(crate) fn apply(args: &ContainerArgs, container: &mut Value) {
    if let Some(image) = &args.image {
        container["image"] = image.as_str().into();
    }
    for (key, words) in [("command", &args.command), ("args", &args.args)] {
        if let Some(words) = words {
            let words: Vec<&String> = words.iter().filter(|word| !word.is_empty()).collect();
            container[key] = json!(words);
        }
    }
    if args.cpu.is_none() && args.memory.is_none() {
        return;
    }
    if !container["resources"].is_object() {
        container["resources"] = json!({});
    }
    let resources = &mut container["resources"];
    if let Some(resources) = resources.as_object_mut() {
        // follows from the others
        resources.remove("ephemeralStorage");
    }
    if let Some(cpu) = args.cpu {
        resources["cpu"] = cores(cpu);
    }
    if let Some(memory) = &args.memory {
        resources["memory"] = memory.as_str().into();
    }
}

/// Mounts all secrets into the first container.
pub(crate) fn mount_secrets(template: &mut Value, path: &str) {
    const NAME: &str = "secret-volume";
    let mut volumes = template["volumes"].as_array().cloned().unwrap_or_default();
    if !volumes.iter().any(|volume| volume["storageType"] == "Secret") {
        volumes.push(json!({ "name": NAME, "storageType": "Secret" }));
    }
    let name = volumes.iter().find(|volume| volume["storageType"] == "Secret").map(|volume| volume["name"].clone());
    let mount = json!({ "volumeName": name, "mountPath": path });
    template["volumes"] = Value::Array(volumes);
    let container = &mut template["containers"][0];
    let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
    mounts.retain(|known| known["volumeName"] != mount["volumeName"]);
    mounts.push(mount);
    container["volumeMounts"] = Value::Array(mounts);
}

impl ContainerArgs {
    /// The type of workload profile that the GPU flags ask for.
    pub(crate) fn gpu(&self) -> Result<Option<&'static str>, Failure> {
        if self.gpu_type.is_none() && self.gpu_count.is_none() {
            return Ok(None);
        }
        profile::gpu_type(self.gpu_type.as_deref(), self.gpu_count.unwrap_or(1)).map(Some)
    }
}

impl ScaleArgs {
    /// Whether any flag was given.
    pub(crate) fn is_given(&self) -> bool {
        self.min_replicas.is_some()
            || self.max_replicas.is_some()
            || self.asks_for_rule()
            || self.cooldown_period.is_some()
            || self.polling_interval.is_some()
            || self.scale_mode.is_some()
            || self.scale_idle.is_some()
            || !self.scale_setting.is_empty()
    }

    /// Whether any flag of a rule was given.
    fn asks_for_rule(&self) -> bool {
        self.scale_rule_name.is_some()
            || self.scale_rule_type.is_some()
            || self.scale_rule_custom_type.is_some()
            || self.scale_rule_http_concurrency.is_some()
            || self.scale_rule_identity.is_some()
            || !self.scale_rule_metadata.is_empty()
            || !self.scale_rule_auth.is_empty()
    }

    /// Lays the flags that were given over `template.scale`. A rule replaces all rules, as az does.
    pub(crate) fn apply(&self, scale: &mut Value) -> Result<(), Failure> {
        if !scale.is_object() {
            *scale = Value::Object(Map::new());
        }
        if let Some(min) = self.min_replicas {
            scale["minReplicas"] = min.into();
        }
        if let Some(max) = self.max_replicas {
            scale["maxReplicas"] = max.into();
        }
        if let Some(seconds) = self.cooldown_period {
            scale["cooldownPeriod"] = seconds.into();
        }
        if let Some(seconds) = self.polling_interval {
            scale["pollingInterval"] = seconds.into();
        }
        match self.scale_mode.as_deref() {
            Some("default") => scale["coveMode"] = Value::Null,
            Some(mode) => scale["coveMode"] = mode.into(),
            None => {}
        }
        if let Some(idle) = &self.scale_idle {
            scale["coveIdle"] = idle.as_str().into();
        }
        self.settings(scale)?;
        if let Some(name) = &self.scale_rule_name {
            scale["rules"] = json!([self.rule(name)?]);
        } else if self.asks_for_rule() {
            return Err(Failure::usage("a scale rule needs a name").hint("add --scale-rule-name"));
        }
        Ok(())
    }

    /// `KEY=VALUE` into `coveSettings`; `fallback.KEY` into its fallback. What the server does not know it refuses.
    fn settings(&self, scale: &mut Value) -> Result<(), Failure> {
        const FLAG: &str = "--scale-setting";
        for pair in &self.scale_setting {
            let (key, text) = pairs::split(pair, FLAG)?;
            let value = match text {
                "" => Value::Null,
                text => text.parse::<u32>().map_or_else(|_| Value::from(text), Value::from),
            };
            let mut place = &mut scale["coveSettings"];
            let path: Vec<&str> = key.split('.').collect();
            let (last, parents) = path.split_last().expect("a split has at least one part");
            for parent in parents {
                if !place.is_object() {
                    *place = json!({});
                }
                place = &mut place[*parent];
            }
            if !place.is_object() {
                *place = json!({});
            }
            place[*last] = value;
        }
        Ok(())
    }

    fn rule(&self, name: &str) -> Result<Value, Failure> {
        let kind = self.scale_rule_type.as_deref().unwrap_or("http").to_ascii_lowercase();
        let mut metadata = pairs::object(&self.scale_rule_metadata, "--scale-rule-metadata")?;
        let auth = self.auth()?;
        let concurrency = self.scale_rule_http_concurrency.map(|count| count.to_string());
        let mut rule = match kind.as_str() {
            "http" | "tcp" => {
                let key = if kind == "http" { "concurrentRequests" } else { "concurrentConnections" };
                if let Some(concurrency) = concurrency {
                    metadata[key] = concurrency.into();
                }
                json!({ "name": name, kind: with_auth(json!({ "metadata": metadata }), auth) })
            }
            "custom" => {
                let kind = self.scale_rule_custom_type.as_deref().ok_or_else(|| {
                    Failure::usage("a custom scale rule needs a type")
                        .hint("add --scale-rule-custom-type, such as `prometheus`")
                })?;
                json!({ "name": name, "custom": with_auth(json!({ "type": kind, "metadata": metadata }), auth) })
            }
            kind => json!({ "name": name, "custom": with_auth(json!({ "type": kind, "metadata": metadata }), auth) }),
        };
        if let Some(identity) = &self.scale_rule_identity {
            for (_, part) in rule.as_object_mut().expect("json! made an object").iter_mut() {
                if part.is_object() {
                    part["identity"] = identity.as_str().into();
                }
            }
        }
        Ok(rule)
    }

    fn auth(&self) -> Result<Vec<Value>, Failure> {
        let pairs = self.scale_rule_auth.iter().map(|pair| {
            let (parameter, secret) = pairs::split(pair, "--scale-rule-auth")?;
            Ok(json!({ "triggerParameter": parameter, "secretRef": secret }))
        });
        pairs.collect()
    }
}

fn with_auth(mut rule: Value, auth: Vec<Value>) -> Value {
    if !auth.is_empty() {
        rule["auth"] = Value::Array(auth);
    }
    rule
}
