//! `containerapp env workload-profile`, and the profile that the seeds' GPU flags stand for.

use reqwest::Method;
use serde_json::{Value, json};

use super::EnvironmentRef;
use crate::{
    client::{Wait, encode},
    failure::Failure,
    output::View,
    session::Session,
    text,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ProfileCommand {
    /// List the types of profiles.
    ListSupported {
        /// Region; this server has one.
        #[arg(short, long, default_value = "local")]
        location: String,
    },
    /// List the environment's profiles with their nodes.
    List(EnvironmentRef),
    /// Show a profile.
    Show(ProfileRef),
    /// Add a profile.
    Add {
        #[command(flatten)]
        profile: ProfileRef,
        #[command(flatten)]
        nodes: NodesArgs,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Change the nodes of a profile.
    Update {
        #[command(flatten)]
        profile: ProfileRef,
        #[command(flatten)]
        nodes: NodesArgs,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Delete a profile.
    Delete(ProfileRef),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProfileRef {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// Name of the profile.
    #[arg(short = 'w', long)]
    workload_profile_name: String,
}

/// Type and nodes of a profile.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NodesArgs {
    /// Type, such as D4, Consumption-GPU-NC24-A100 or GPU-A100.
    #[arg(long, value_name = "TYPE")]
    pub(super) workload_profile_type: Option<String>,
    /// Fewest nodes.
    #[arg(long, value_name = "N")]
    min_nodes: Option<u32>,
    /// Most nodes.
    #[arg(long, value_name = "N")]
    max_nodes: Option<u32>,
}

/// Types as Azure spells them, for flags in other cases.
const TYPES: [&str; 15] = [
    "Consumption",
    "D4",
    "D8",
    "D16",
    "D32",
    "E4",
    "E8",
    "E16",
    "E32",
    "NC24-A100",
    "NC48-A100",
    "NC96-A100",
    "Consumption-GPU-NC24-A100",
    "Consumption-GPU-NC8as-T4",
    "GPU-A100",
];

/// The seeds' `--gpu-type`: its spelling, and the type of profile that has one such GPU.
const GPUS: [(&str, &str); 2] = [("a100", "Consumption-GPU-NC24-A100"), ("t4", "Consumption-GPU-NC8as-T4")];
/// Dedicated types with several A100 GPUs.
const A100_SEVERAL: [(u32, &str); 2] = [(2, "NC48-A100"), (4, "NC96-A100")];

pub(super) async fn run(session: &Session, command: ProfileCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        ProfileCommand::ListSupported { location } => {
            let path = format!(
                "/subscriptions/{}/providers/Microsoft.App/locations/{}/availableManagedEnvironmentsWorkloadProfileTypes",
                client.subscription(),
                encode(&location)
            );
            session.print(client.list(&path).await?, View::ProfileTypes)
        }
        ProfileCommand::List(environment) => session.print(states(session, &environment).await?, View::ProfileStates),
        ProfileCommand::Show(profile) => {
            let states = states(session, &profile.environment).await?;
            let found = states.as_array().and_then(|states| named(states, &profile.workload_profile_name)).cloned();
            let names = names(&states);
            let missing = || {
                Failure::not_found(format!("the environment has no profile `{}`", profile.workload_profile_name))
                    .hint(format!("it has: {names}"))
            };
            session.print(found.ok_or_else(missing)?, View::ProfileStates)
        }
        ProfileCommand::Add { profile, nodes, no_wait } => {
            if nodes.workload_profile_type.is_none() {
                return Err(Failure::usage("which type of profile?")
                    .hint("add --workload-profile-type; see: cove containerapp env workload-profile list-supported"));
            }
            change(session, &profile, &nodes, true, no_wait).await
        }
        ProfileCommand::Update { profile, nodes, no_wait } => change(session, &profile, &nodes, false, no_wait).await,
        ProfileCommand::Delete(profile) => {
            let path = profile.environment.path(session);
            let old = client.get(&path).await?;
            let mut profiles = profiles(&old);
            let before = profiles.len();
            profiles.retain(|known| !is_named(known, &profile.workload_profile_name));
            if profiles.len() == before {
                return Err(missing(&old, &profile.workload_profile_name));
            }
            let changed = patch(session, &path, &old, profiles, Wait::Done).await?;
            session.print(changed, View::Environments)
        }
    }
}

async fn states(session: &Session, environment: &EnvironmentRef) -> Result<Value, Failure> {
    session.client.list(&format!("{}/workloadProfileStates", environment.path(session))).await
}

async fn change(
    session: &Session,
    profile: &ProfileRef,
    nodes: &NodesArgs,
    is_new: bool,
    no_wait: bool,
) -> Result<(), Failure> {
    let path = profile.environment.path(session);
    let old = session.client.get(&path).await?;
    let name = &profile.workload_profile_name;
    match (is_new, named(&profiles(&old), name)) {
        (true, Some(_)) => {
            return Err(Failure::new(format!("the environment has a profile `{name}` already"))
                .hint("change it with: cove containerapp env workload-profile update"));
        }
        (false, None) => return Err(missing(&old, name)),
        _ => {}
    }
    let changed = patch(session, &path, &old, laid_over(&old, name, nodes)?, Wait::unless(no_wait)).await?;
    session.print(changed, View::Environments)
}

async fn patch(session: &Session, path: &str, old: &Value, profiles: Vec<Value>, wait: Wait) -> Result<Value, Failure> {
    let body = json!({ "location": old["location"], "properties": { "workloadProfiles": profiles } });
    session.client.write(Method::PATCH, path, Some(&body), wait).await
}

fn profiles(environment: &Value) -> Vec<Value> {
    environment["properties"]["workloadProfiles"].as_array().cloned().unwrap_or_default()
}

fn is_named(profile: &Value, name: &str) -> bool {
    profile["name"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name))
}

fn named<'a>(profiles: &'a [Value], name: &str) -> Option<&'a Value> {
    profiles.iter().find(|profile| is_named(profile, name))
}

fn names(profiles: &Value) -> String {
    let names =
        profiles.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(|profile| profile["name"].as_str());
    names.collect::<Vec<_>>().join(", ")
}

fn missing(environment: &Value, name: &str) -> Failure {
    let has = names(&environment["properties"]["workloadProfiles"]);
    Failure::not_found(format!("the environment has no profile `{name}`")).hint(format!("it has: {has}"))
}

/// The environment's profiles with the one named changed or added.
pub(super) fn laid_over(environment: &Value, name: &str, nodes: &NodesArgs) -> Result<Vec<Value>, Failure> {
    let mut profiles = profiles(environment);
    if profiles.is_empty() {
        return Err(Failure::new("the environment has no workload profiles")
            .hint("create one that has: cove containerapp env create --enable-workload-profiles"));
    }
    let known = profiles.iter().position(|profile| is_named(profile, name));
    let index = known.unwrap_or_else(|| {
        profiles.push(json!({ "name": name }));
        profiles.len() - 1
    });
    let profile = &mut profiles[index];
    if let Some(kind) = &nodes.workload_profile_type {
        let known = TYPES.iter().find(|known| known.eq_ignore_ascii_case(kind));
        profile["workloadProfileType"] = (*known.unwrap_or(&kind.as_str())).into();
    }
    if let Some(count) = nodes.min_nodes {
        profile["minimumCount"] = count.into();
    }
    if let Some(count) = nodes.max_nodes {
        profile["maximumCount"] = count.into();
    }
    Ok(profiles)
}

/// The type of profile that `--gpu-type` and `--gpu-count` ask for.
pub(crate) fn gpu_type(kind: Option<&str>, count: u32) -> Result<&'static str, Failure> {
    let kind = kind.unwrap_or("nvidia-a100").to_ascii_lowercase();
    let bare = kind.strip_prefix("nvidia-").unwrap_or(&kind);
    let one =
        GPUS.iter().find(|(name, _)| *name == bare).map(|(_, profile)| *profile).ok_or_else(|| {
            Failure::usage(format!("--gpu-type: `{kind}` is not known")).hint("nvidia-a100 or nvidia-t4")
        })?;
    match count {
        1 => Ok(one),
        count if bare == "a100" => {
            let several = A100_SEVERAL.iter().find(|(has, _)| *has == count).map(|(_, profile)| *profile);
            several
                .ok_or_else(|| Failure::usage(format!("no workload profile has {count} A100 GPUs")).hint("1, 2 or 4"))
        }
        count => Err(Failure::usage(format!("no workload profile has {count} T4 GPUs")).hint("1")),
    }
}

/// Name of a profile of `kind` in the environment at `path`; added where there is none, and said.
pub(crate) async fn ensure(session: &Session, path: &str, kind: &str) -> Result<String, Failure> {
    let old = session.client.get(path).await?;
    let is_kind = |profile: &&Value| {
        profile["workloadProfileType"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(kind))
    };
    if let Some(found) = profiles(&old).iter().find(is_kind) {
        let name = found["name"].as_str().unwrap_or_default().to_owned();
        text::note(&format!("The app goes to the workload profile `{name}` ({kind})."));
        return Ok(name);
    }
    let name = kind.trim_start_matches("Consumption-").to_ascii_lowercase();
    let mut nodes = NodesArgs { workload_profile_type: Some(kind.to_owned()), ..NodesArgs::default() };
    if !kind.starts_with("Consumption-") {
        (nodes.min_nodes, nodes.max_nodes) = (Some(0), Some(1));
    }
    text::note(&format!("Adding the workload profile `{name}` ({kind}) to the environment; the app goes to it."));
    let mut profiles = profiles(&old);
    if profiles.is_empty() {
        profiles.push(json!({ "name": "Consumption", "workloadProfileType": "Consumption" }));
    }
    let environment = json!({ "properties": { "workloadProfiles": profiles } });
    patch(session, path, &old, laid_over(&environment, &name, &nodes)?, Wait::Done).await?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_flags_name_a_type() {
        let ask = |kind, count| gpu_type(kind, count).map_err(|failure| failure.text);
        assert_eq!(ask(Some("nvidia-a100"), 1), Ok("Consumption-GPU-NC24-A100"));
        assert_eq!(ask(Some("NVIDIA-T4"), 1), Ok("Consumption-GPU-NC8as-T4"));
        assert_eq!(ask(None, 2), Ok("NC48-A100"));
        assert_eq!(ask(Some("a100"), 3), Err("no workload profile has 3 A100 GPUs".to_owned()));
        assert_eq!(ask(Some("h100"), 1), Err("--gpu-type: `h100` is not known".to_owned()));
    }

    #[test]
    fn types_are_spelt_as_azure_spells_them() {
        let old = json!({"properties": {"workloadProfiles": [{"name": "Consumption", "workloadProfileType": "Consumption"}]}});
        let nodes =
            NodesArgs { workload_profile_type: Some("gpu-a100".into()), min_nodes: Some(0), max_nodes: Some(10) };
        assert_eq!(
            laid_over(&old, "gpu", &nodes).unwrap()[1],
            json!({"name": "gpu", "workloadProfileType": "GPU-A100", "minimumCount": 0, "maximumCount": 10})
        );
        assert!(laid_over(&json!({}), "gpu", &nodes).is_err());
    }
}
