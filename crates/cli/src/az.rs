//! `cove az` and `cove az-env`: the real `az`, pointed at this server.
//!
//! az finds the server by its cloud metadata and trusts it by its CA certificate; its configuration lives in a folder
//! of its own, so that nobody's real Azure login is touched.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    client::Client,
    failure::Failure,
    place::{Found, Place},
    session::{Globals, block_on},
    text,
};

/// Remembers which server the folder is logged in to.
const LOGIN_FILE: &str = "cove-login";

#[derive(Debug, clap::Args)]
pub(crate) struct AzArgs {
    /// Arguments of az, after `--`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &AzArgs, globals: &Globals) -> Result<(), Failure> {
    let (found, dir) = prepare(&globals.place)?;
    let error = az(&found, &dir).args(&args.args).exec();
    Err(not_started(&error))
}

/// Prints `export NAME='value'` lines for a shell.
pub(crate) fn print_environment(globals: &Globals) -> Result<(), Failure> {
    let (found, dir) = prepare(&globals.place)?;
    let mut lines = String::new();
    for (name, value) in variables(&found, &dir) {
        lines.push_str(&format!("export {name}='{}'\n", value.replace('\'', "'\\''")));
    }
    text::out(&lines);
    Ok(())
}

/// Finds the server and logs az in where that was not done yet.
fn prepare(place: &Place) -> Result<(Found, PathBuf), Failure> {
    let found = place.find()?;
    let dir = place.data_dir.path().join("az");
    let mark = format!("{} {}\n", found.api, place.client_id.as_deref().unwrap_or("cove"));
    if fs::read_to_string(dir.join(LOGIN_FILE)).is_ok_and(|known| known == mark) {
        return Ok((found, dir));
    }
    // az keeps what it knows of another server; it must forget all of it
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(folder_failure(&dir, &error)),
        _ => fs::create_dir_all(&dir).map_err(|error| folder_failure(&dir, &error))?,
    }
    let tenant = block_on(async {
        let answer = Client::connect(place).await?.get("/tenants").await?;
        let tenant = answer["value"][0]["tenantId"].as_str().map(str::to_owned);
        tenant.ok_or_else(|| Failure::new("the server has no tenant"))
    })?;
    let (id, secret) =
        (place.client_id.as_deref().unwrap_or("cove"), place.client_secret.as_deref().unwrap_or("local"));
    let login = az(&found, &dir)
        .args(["login", "--service-principal", "-u", id, "-p", secret, "--tenant", &tenant, "--output", "none"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(&error))?;
    if !login.status.success() {
        let said = String::from_utf8_lossy(&login.stderr);
        return Err(Failure::new(format!("`az login` failed: {}", said.trim())));
    }
    fs::write(dir.join(LOGIN_FILE), mark).map_err(|error| folder_failure(&dir, &error))?;
    Ok((found, dir))
}

fn folder_failure(dir: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("failed to make az's folder `{}`: {error}", dir.display()))
        .hint("run it as the user who owns the data directory, or choose another one with --data-dir")
}

fn not_started(error: &io::Error) -> Failure {
    Failure::new(format!("failed to start `az`: {error}")).hint("install it with: pip install azure-cli==2.91.0")
}

fn az(found: &Found, dir: &Path) -> Command {
    let mut command = Command::new("az");
    command.envs(variables(found, dir));
    command
}

fn variables(found: &Found, dir: &Path) -> Vec<(&'static str, String)> {
    let ca = found.ca.display().to_string();
    vec![
        ("ARM_CLOUD_METADATA_URL", format!("{}/metadata/endpoints?api-version=2019-05-01", found.api)),
        ("REQUESTS_CA_BUNDLE", ca.clone()),
        ("SSL_CERT_FILE", ca.clone()),
        ("WEBSOCKET_CLIENT_CA_BUNDLE", ca),
        ("AZURE_CONFIG_DIR", dir.display().to_string()),
        ("AZURE_EXTENSION_DIR", dir.join("extensions").display().to_string()),
        ("AZURE_CORE_COLLECT_TELEMETRY", "no".to_owned()),
        ("AZURE_CORE_SURVEY_MESSAGE", "no".to_owned()),
        ("AZURE_CORE_LOGIN_EXPERIENCE_V2", "off".to_owned()),
        ("AZURE_CORE_INSTANCE_DISCOVERY", "false".to_owned()),
        ("AZURE_EXTENSION_USE_DYNAMIC_INSTALL", "no".to_owned()),
    ]
}
