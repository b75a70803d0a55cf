//! `containerapp auth`: authentication in front of an app, as the resource `authConfigs/current` says it.

mod providers;

use reqwest::Method;
use serde_json::{Value, json};

use super::{AppRef, whole};
use crate::{client::Wait, failure::Failure, output::View, pairs, session::Session, text};

/// Secret for the token store's URL, as az names it.
const TOKEN_STORE_SECRET: &str = "blob-storage-token-store-sasurl-secret";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuthCommand {
    /// Show the settings.
    Show(AppRef),
    /// Change the settings.
    Update(Box<UpdateArgs>),
    /// Apple.
    #[command(subcommand)]
    Apple(providers::ProviderCommand),
    /// Facebook.
    #[command(subcommand)]
    Facebook(providers::ProviderCommand),
    /// GitHub.
    #[command(subcommand)]
    Github(providers::ProviderCommand),
    /// Google.
    #[command(subcommand)]
    Google(providers::ProviderCommand),
    /// Microsoft Entra.
    #[command(subcommand)]
    Microsoft(providers::ProviderCommand),
    /// Any OpenID Connect provider.
    #[command(subcommand)]
    OpenidConnect(providers::OpenIdCommand),
    /// Twitter.
    #[command(subcommand)]
    Twitter(providers::ProviderCommand),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    app: AppRef,
    /// A single field: `path.to.field=value`.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Option<String>,
    /// Turn authentication on or off.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    enabled: Option<bool>,
    /// Version of Azure's authentication.
    #[arg(long, value_name = "VERSION")]
    runtime_version: Option<String>,
    /// File with the settings, inside the container.
    #[arg(long, value_name = "PATH")]
    config_file_path: Option<String>,
    /// What a client without a login gets.
    #[arg(long, alias = "action", ignore_case = true,
        value_parser = ["RedirectToLoginPage", "AllowAnonymous", "Return401", "Return403"])]
    unauthenticated_client_action: Option<String>,
    /// Provider to redirect to.
    #[arg(long, value_name = "NAME")]
    redirect_provider: Option<String>,
    /// Paths that need no login, with commas.
    #[arg(long, value_name = "PATHS")]
    excluded_paths: Option<String>,
    /// Refuse answers that are not HTTPS.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    require_https: Option<bool>,
    /// How the request's URL is found.
    #[arg(long, ignore_case = true, value_parser = ["NoProxy", "Standard", "Custom"])]
    proxy_convention: Option<String>,
    /// Header with the host of the request.
    #[arg(long, alias = "custom-host-header", value_name = "HEADER")]
    proxy_custom_host_header: Option<String>,
    /// Header with the scheme of the request.
    #[arg(long, alias = "custom-proto-header", value_name = "HEADER")]
    proxy_custom_proto_header: Option<String>,
    /// Keep tokens in a store.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    token_store: Option<bool>,
    /// URL of the store; becomes a secret of the app.
    #[arg(long, value_name = "URL", conflicts_with = "sas_url_secret_name")]
    sas_url_secret: Option<String>,
    /// Secret that holds the URL of the store.
    #[arg(long, value_name = "NAME")]
    sas_url_secret_name: Option<String>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(session: &Session, command: AuthCommand) -> Result<(), Failure> {
    use providers::Provider;
    match command {
        AuthCommand::Show(app) => {
            let settings = current(session, &app).await?;
            session.print(settings.unwrap_or_else(|| json!({})), View::Plain)
        }
        AuthCommand::Update(args) => update(session, *args).await,
        AuthCommand::Apple(command) => providers::run(session, command, Provider::Apple).await,
        AuthCommand::Facebook(command) => providers::run(session, command, Provider::Facebook).await,
        AuthCommand::Github(command) => providers::run(session, command, Provider::Github).await,
        AuthCommand::Google(command) => providers::run(session, command, Provider::Google).await,
        AuthCommand::Microsoft(command) => providers::run(session, command, Provider::Microsoft).await,
        AuthCommand::OpenidConnect(command) => providers::open_id(session, command).await,
        AuthCommand::Twitter(command) => providers::run(session, command, Provider::Twitter).await,
    }
}

fn path(session: &Session, app: &AppRef) -> String {
    format!("{}/authConfigs/current", app.path(session))
}

/// The properties of the settings, where there are any.
async fn current(session: &Session, app: &AppRef) -> Result<Option<Value>, Failure> {
    Ok(session.client.find(&path(session, app)).await?.map(|mut found| found["properties"].take()))
}

/// The settings to change; those of an app without any are on.
async fn editable(session: &Session, app: &AppRef) -> Result<Value, Failure> {
    let found = session.client.get(&app.path(session)).await?;
    whole::ingress(&found).map_err(|_| {
        Failure::new("authentication needs an ingress")
            .hint("cove containerapp ingress enable --type external --target-port PORT")
    })?;
    let fresh = || json!({ "platform": { "enabled": true }, "globalValidation": {}, "login": {} });
    Ok(current(session, app).await?.unwrap_or_else(fresh))
}

/// Writes the settings; their properties afterwards.
async fn put(session: &Session, app: &AppRef, properties: &Value) -> Result<Value, Failure> {
    let body = json!({ "properties": properties });
    let mut written = session.client.write(Method::PUT, &path(session, app), Some(&body), Wait::Done).await?;
    Ok(written["properties"].take())
}

/// Puts a provider's secret among the app's, after consent.
async fn add_secret(session: &Session, app: &AppRef, name: &str, value: &str, yes: bool) -> Result<(), Failure> {
    session.confirm(&format!("Add the secret `{name}` to the app?"), yes)?;
    let path = app.path(session);
    let secret = json!({ "name": name, "value": value });
    let changed = whole::edit(session, &path, false, |app| {
        let secrets = &mut app["properties"]["configuration"]["secrets"];
        let mut list = secrets.as_array().cloned().unwrap_or_default();
        list.retain(|known| known["name"] != name);
        list.push(secret);
        *secrets = Value::Array(list);
        Ok(())
    });
    changed.await?;
    text::note(&format!("The app has the secret `{name}`."));
    Ok(())
}

async fn update(session: &Session, args: UpdateArgs) -> Result<(), Failure> {
    let mut settings = editable(session, &args.app).await?;
    if let Some(pair) = &args.set {
        set_field(&mut settings, pair)?;
    }
    lay_over(&mut settings, &args);
    match args.token_store {
        None => {}
        Some(false) => settings["login"]["tokenStore"]["enabled"] = false.into(),
        Some(true) => {
            let name = match (&args.sas_url_secret, &args.sas_url_secret_name) {
                (Some(url), _) => {
                    add_secret(session, &args.app, TOKEN_STORE_SECRET, url, args.yes).await?;
                    TOKEN_STORE_SECRET
                }
                (None, Some(name)) => name,
                (None, None) => {
                    return Err(Failure::usage("where is the token store?")
                        .hint("add --sas-url-secret or --sas-url-secret-name"));
                }
            };
            settings["login"]["tokenStore"] =
                json!({ "enabled": true, "azureBlobStorage": { "sasUrlSettingName": name } });
        }
    }
    session.print(put(session, &args.app, &settings).await?, View::Plain)
}

fn lay_over(settings: &mut Value, args: &UpdateArgs) {
    if let Some(enabled) = args.enabled {
        settings["platform"]["enabled"] = enabled.into();
    }
    if let Some(required) = args.require_https {
        settings["httpSettings"]["requireHttps"] = required.into();
    }
    let texts = [
        (["platform", "runtimeVersion"], &args.runtime_version),
        (["platform", "configFilePath"], &args.config_file_path),
        (["globalValidation", "unauthenticatedClientAction"], &args.unauthenticated_client_action),
        (["globalValidation", "redirectToProvider"], &args.redirect_provider),
    ];
    for ([part, name], text) in texts {
        if let Some(text) = text {
            settings[part][name] = text.as_str().into();
        }
    }
    let headers = [
        ("convention", &args.proxy_convention),
        ("customHostHeaderName", &args.proxy_custom_host_header),
        ("customProtoHeaderName", &args.proxy_custom_proto_header),
    ];
    for (name, text) in headers {
        if let Some(text) = text {
            settings["httpSettings"]["forwardProxy"][name] = text.as_str().into();
        }
    }
    if let Some(paths) = &args.excluded_paths {
        settings["globalValidation"]["excludedPaths"] = paths.split(',').map(str::trim).collect::<Vec<_>>().into();
    }
}

/// `a.b=value`; `[x,y]` is a list.
fn set_field(settings: &mut Value, pair: &str) -> Result<(), Failure> {
    let (path, value) = pairs::split(pair, "--set")?;
    let value = match value.strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
        Some(list) => list.split(',').map(str::trim).collect::<Vec<_>>().into(),
        None => Value::from(value),
    };
    let mut field = settings;
    for name in path.split('.') {
        if !field.is_object() && !field.is_null() {
            return Err(Failure::usage(format!("--set: `{path}` leads through a value that is not an object")));
        }
        field = &mut field[name];
    }
    *field = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_set_by_its_path() {
        let mut settings = json!({"platform": {"enabled": true}});
        set_field(&mut settings, "globalValidation.excludedPaths=[/a, /b]").unwrap();
        set_field(&mut settings, "platform.runtimeVersion=~2").unwrap();
        assert_eq!(
            settings,
            json!({"platform": {"enabled": true, "runtimeVersion": "~2"},
                "globalValidation": {"excludedPaths": ["/a", "/b"]}})
        );
        assert!(set_field(&mut settings, "platform.enabled.x=1").is_err());
        assert!(set_field(&mut settings, "platform").is_err());
    }
}
