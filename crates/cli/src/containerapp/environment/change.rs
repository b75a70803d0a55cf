//! `containerapp env update`, and the settings that `create` and `update` share.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use super::{EnvironmentRef, certificate, profile};
use crate::{client::Wait, failure::Failure, output::View, pairs, session::Session};

/// Settings of an environment beside its network and logs.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SettingsArgs {
    /// Application Insights connection string of Dapr; `none` removes it.
    #[arg(short = 'd', long, value_name = "TEXT")]
    dapr_connection_string: Option<String>,
    /// Encrypt and authenticate traffic between apps.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    enable_mtls: Option<bool>,
    /// Encrypt traffic between apps.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    enable_peer_to_peer_encryption: Option<bool>,
    /// DNS suffix of the environment's apps.
    #[arg(long, alias = "dns-suffix", value_name = "SUFFIX")]
    custom_domain_dns_suffix: Option<String>,
    /// Certificate of the DNS suffix, .pem or .pfx.
    #[arg(long, alias = "certificate-file", value_name = "FILE")]
    custom_domain_certificate_file: Option<PathBuf>,
    /// Password of the certificate file.
    #[arg(long, alias = "certificate-password", value_name = "PASSWORD")]
    custom_domain_certificate_password: Option<String>,
    /// Storage account of Azure Monitor: sent as given.
    #[arg(long, hide = true)]
    storage_account: Option<String>,
}

impl SettingsArgs {
    /// Lays the flags that were given over `properties`.
    pub(super) fn apply(&self, properties: &mut Value) -> Result<(), Failure> {
        if self.enable_mtls == Some(true) && self.enable_peer_to_peer_encryption == Some(false) {
            return Err(Failure::usage("--enable-mtls needs encryption between apps")
                .hint("leave --enable-peer-to-peer-encryption out, or set it to true"));
        }
        if let Some(text) = &self.dapr_connection_string {
            properties["daprAIConnectionString"] = if text == "none" { Value::Null } else { text.as_str().into() };
        }
        if let Some(enabled) = self.enable_mtls {
            properties["peerAuthentication"]["mtls"]["enabled"] = enabled.into();
        }
        if let Some(enabled) = self.enable_peer_to_peer_encryption {
            properties["peerTrafficConfiguration"]["encryption"]["enabled"] = enabled.into();
        }
        if let Some(suffix) = &self.custom_domain_dns_suffix {
            let domain = &mut properties["customDomainConfiguration"];
            domain["dnsSuffix"] = suffix.as_str().into();
            if let Some(file) = &self.custom_domain_certificate_file {
                domain["certificateValue"] = certificate::read(file)?.into();
            }
            if let Some(password) = &self.custom_domain_certificate_password {
                domain["certificatePassword"] = password.as_str().into();
            }
        }
        if self.storage_account.is_some() {
            return Err(Failure::usage("--storage-account has no meaning here: no Azure Monitor is attached")
                .hint("logs are kept by this server: cove containerapp env logs show"));
        }
        Ok(())
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// `key=value …`, instead of the old ones.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
    tags: Option<Vec<String>>,
    /// Where logs go: log-analytics, azure-monitor or none.
    #[arg(long, value_name = "WHERE")]
    logs_destination: Option<String>,
    /// Id of a Log Analytics workspace.
    #[arg(long, value_name = "ID")]
    logs_workspace_id: Option<String>,
    /// Key of the workspace.
    #[arg(long, value_name = "KEY")]
    logs_workspace_key: Option<String>,
    /// Workload profile to add or change.
    #[arg(short = 'w', long, value_name = "NAME")]
    workload_profile_name: Option<String>,
    #[command(flatten)]
    profile: profile::NodesArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(session: &Session, args: UpdateArgs) -> Result<(), Failure> {
    let path = args.environment.path(session);
    let old = session.client.get(&path).await?;
    let body = patch(&old, &args)?;
    let changed = session.client.write(Method::PATCH, &path, Some(&body), Wait::unless(args.no_wait)).await?;
    session.print(changed, View::Environments)
}

fn patch(old: &Value, args: &UpdateArgs) -> Result<Value, Failure> {
    let mut body = json!({ "location": old["location"], "properties": {} });
    if let Some(tags) = &args.tags {
        body["tags"] = pairs::object(tags, "--tags")?;
    }
    let properties = &mut body["properties"];
    let destination = args.logs_destination.as_deref();
    match (destination, &args.logs_workspace_id, &args.logs_workspace_key) {
        (Some("log-analytics"), Some(id), Some(key)) => {
            properties["appLogsConfiguration"] = json!({ "destination": "log-analytics",
                "logAnalyticsConfiguration": { "customerId": id, "sharedKey": key } });
        }
        (Some("log-analytics"), _, _) | (None, Some(_), _) | (None, _, Some(_)) => {
            return Err(Failure::usage("a Log Analytics workspace needs its destination, id and key")
                .hint("add --logs-destination log-analytics --logs-workspace-id ID --logs-workspace-key KEY"));
        }
        (Some(other), _, _) => {
            let destination = if other == "none" { Value::Null } else { other.into() };
            properties["appLogsConfiguration"] =
                json!({ "destination": destination, "logAnalyticsConfiguration": Value::Null });
        }
        (None, None, None) => {}
    }
    let name = args.workload_profile_name.as_ref().or(args.profile.workload_profile_type.as_ref());
    if let Some(name) = name {
        properties["workloadProfiles"] = Value::Array(profile::laid_over(old, name, &args.profile)?);
    }
    args.settings.apply(properties)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn check(line: &str) -> Result<Value, String> {
        let args = Line::parse_from(format!("x -g rg -n env {line}").split(' ')).args;
        let old = json!({"location": "local", "properties": {"workloadProfiles": [
            {"name": "Consumption", "workloadProfileType": "Consumption"},
            {"name": "d4", "workloadProfileType": "D4", "minimumCount": 1, "maximumCount": 3}]}});
        patch(&old, &args).map(|mut body| body["properties"].take()).map_err(|failure| failure.text)
    }

    #[test]
    fn only_what_was_named_changes() {
        assert_eq!(check("--enable-mtls").unwrap(), json!({"peerAuthentication": {"mtls": {"enabled": true}}}));
        assert_eq!(
            check("-w d4 --max-nodes 5").unwrap()["workloadProfiles"][1],
            json!({"name": "d4", "workloadProfileType": "D4", "minimumCount": 1, "maximumCount": 5})
        );
        assert_eq!(
            check("--logs-destination none").unwrap(),
            json!({"appLogsConfiguration": {"destination": null, "logAnalyticsConfiguration": null}})
        );
        assert!(check("--logs-workspace-id a").is_err());
        assert!(check("--enable-mtls --enable-peer-to-peer-encryption false").is_err());
    }
}
