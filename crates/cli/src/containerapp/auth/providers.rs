//! `containerapp auth apple|facebook|github|google|microsoft|openid-connect|twitter`.

use serde_json::{Value, json};

use super::{AppRef, add_secret, current, editable, put};
use crate::{failure::Failure, output::View, session::Session};

/// A provider with a place of its own in the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    Apple,
    Facebook,
    Github,
    Google,
    Microsoft,
    Twitter,
}

/// How a provider's settings are spelt.
struct Spelling {
    /// Its key in `identityProviders`.
    key: &'static str,
    /// Key of the public id.
    id: &'static str,
    /// Key of the secret's name.
    secret: &'static str,
    /// Secret of the app, as az names it.
    secret_name: &'static str,
}

impl Provider {
    fn spelling(self) -> Spelling {
        let (key, id, secret, secret_name) = match self {
            Self::Apple => ("apple", "clientId", "clientSecretSettingName", "apple-provider-authentication-secret"),
            Self::Facebook => ("facebook", "appId", "appSecretSettingName", "facebook-provider-authentication-secret"),
            Self::Github => ("gitHub", "clientId", "clientSecretSettingName", "github-provider-authentication-secret"),
            Self::Google => ("google", "clientId", "clientSecretSettingName", "google-provider-authentication-secret"),
            Self::Microsoft => (
                "azureActiveDirectory",
                "clientId",
                "clientSecretSettingName",
                "microsoft-provider-authentication-secret",
            ),
            Self::Twitter => {
                ("twitter", "consumerKey", "consumerSecretSettingName", "twitter-provider-authentication-secret")
            }
        };
        Spelling { key, id, secret, secret_name }
    }
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ProviderCommand {
    /// Show the provider.
    Show(AppRef),
    /// Change the provider.
    Update(Box<ProviderArgs>),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProviderArgs {
    #[command(flatten)]
    app: AppRef,
    /// Id of the app at the provider.
    #[arg(long, aliases = ["app-id", "consumer-key"], value_name = "ID")]
    client_id: Option<String>,
    /// Secret of the app at the provider; becomes a secret of the container app.
    #[arg(long, aliases = ["app-secret", "consumer-secret"], value_name = "SECRET")]
    client_secret: Option<String>,
    /// Secret of the container app that holds it.
    #[arg(long, aliases = ["app-secret-name", "consumer-secret-name", "secret-name"], value_name = "NAME",
        conflicts_with = "client_secret")]
    client_secret_name: Option<String>,
    /// Scopes to ask for, with commas.
    #[arg(long, value_name = "SCOPES")]
    scopes: Option<String>,
    /// Audiences to accept, with commas.
    #[arg(long, alias = "allowed-audiences", value_name = "AUDIENCES")]
    allowed_token_audiences: Option<String>,
    /// Issuer of tokens (Microsoft).
    #[arg(long, value_name = "URL", conflicts_with = "tenant_id")]
    issuer: Option<String>,
    /// Tenant of the app (Microsoft).
    #[arg(long, value_name = "ID")]
    tenant_id: Option<String>,
    /// Certificate instead of a secret (Microsoft).
    #[arg(long, alias = "client-secret-certificate-thumbprint", value_name = "THUMBPRINT",
        conflicts_with_all = ["client_secret", "client_secret_name", "san"])]
    thumbprint: Option<String>,
    /// Certificate by its alternative name (Microsoft).
    #[arg(long, alias = "client-secret-certificate-san", value_name = "NAME", requires = "certificate_issuer",
        conflicts_with_all = ["client_secret", "client_secret_name"])]
    san: Option<String>,
    /// Issuer of that certificate (Microsoft).
    #[arg(long, alias = "client-secret-certificate-issuer", value_name = "NAME", requires = "san")]
    certificate_issuer: Option<String>,
    /// Version of the Graph API (Facebook).
    #[arg(long, value_name = "VERSION")]
    graph_api_version: Option<String>,
    /// Do not ask before a secret is added.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum OpenIdCommand {
    /// Show a provider.
    Show(OpenIdRef),
    /// Add a provider.
    Add(Box<OpenIdArgs>),
    /// Change a provider.
    Update(Box<OpenIdArgs>),
    /// Remove a provider.
    Remove {
        #[command(flatten)]
        provider: OpenIdRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OpenIdRef {
    #[command(flatten)]
    app: AppRef,
    /// Name of the provider.
    #[arg(long)]
    provider_name: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OpenIdArgs {
    #[command(flatten)]
    provider: OpenIdRef,
    /// Id of the app at the provider.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Secret of the app at the provider; becomes a secret of the container app.
    #[arg(long, value_name = "SECRET")]
    client_secret: Option<String>,
    /// Secret of the container app that holds it.
    #[arg(long, value_name = "NAME", conflicts_with = "client_secret")]
    client_secret_name: Option<String>,
    /// URL of the provider's configuration.
    #[arg(long, value_name = "URL")]
    openid_configuration: Option<String>,
    /// Scopes to ask for, with commas [default: openid].
    #[arg(long, value_name = "SCOPES")]
    scopes: Option<String>,
    /// Do not ask before a secret is added.
    #[arg(short, long)]
    yes: bool,
}

fn list(texts: &str) -> Value {
    texts.split(',').map(str::trim).collect::<Vec<_>>().into()
}

pub(super) async fn run(session: &Session, command: ProviderCommand, provider: Provider) -> Result<(), Failure> {
    let spelling = provider.spelling();
    match command {
        ProviderCommand::Show(app) => {
            let settings = current(session, &app).await?.unwrap_or_default();
            let found = settings["identityProviders"][spelling.key].clone();
            session.print(if found.is_null() { json!({}) } else { found }, View::Plain)
        }
        ProviderCommand::Update(args) => {
            let mut settings = editable(session, &args.app).await?;
            if let Some(value) = &args.client_secret {
                add_secret(session, &args.app, spelling.secret_name, value, args.yes).await?;
            }
            let found = &mut settings["identityProviders"][spelling.key];
            let is_new = found.is_null();
            if is_new {
                *found = json!({});
            }
            if is_new && provider == Provider::Microsoft && args.issuer.is_none() && args.tenant_id.is_none() {
                return Err(Failure::usage("which issuer?").hint("add --issuer or --tenant-id"));
            }
            apply(found, &args, &spelling);
            let mut written = put(session, &args.app, &settings).await?;
            session.print(written["identityProviders"][spelling.key].take(), View::Plain)
        }
    }
}

fn apply(found: &mut Value, args: &ProviderArgs, spelling: &Spelling) {
    let secret = args.client_secret.as_ref().map(|_| spelling.secret_name).or(args.client_secret_name.as_deref());
    let issuer = match &args.tenant_id {
        Some(tenant) => Some(format!("https://login.microsoftonline.com/{tenant}/v2.0")),
        None => args.issuer.clone(),
    };
    let fields = [
        (spelling.id, args.client_id.as_deref()),
        (spelling.secret, secret),
        ("openIdIssuer", issuer.as_deref()),
        ("clientSecretCertificateThumbprint", args.thumbprint.as_deref()),
        ("clientSecretCertificateSubjectAlternativeName", args.san.as_deref()),
        ("clientSecretCertificateIssuer", args.certificate_issuer.as_deref()),
    ];
    // one way to prove who the app is: the newest
    let proofs = [
        (spelling.secret, secret.is_some()),
        ("clientSecretCertificateThumbprint", args.thumbprint.is_some()),
        ("clientSecretCertificateSubjectAlternativeName", args.san.is_some()),
    ];
    if proofs.iter().any(|(_, is_given)| *is_given)
        && let Some(registration) = found["registration"].as_object_mut()
    {
        for (name, _) in proofs {
            registration.remove(name);
        }
        registration.remove("clientSecretCertificateIssuer");
    }
    for (name, text) in fields {
        if let Some(text) = text {
            found["registration"][name] = text.into();
        }
    }
    if let Some(scopes) = &args.scopes {
        found["login"]["scopes"] = list(scopes);
    }
    if let Some(audiences) = &args.allowed_token_audiences {
        found["validation"]["allowedAudiences"] = list(audiences);
    }
    if let Some(version) = &args.graph_api_version {
        found["graphApiVersion"] = version.as_str().into();
    }
}

const CUSTOM: &str = "customOpenIdConnectProviders";

fn missing(name: &str) -> Failure {
    Failure::not_found(format!("the app has no OpenID Connect provider `{name}`"))
}

pub(super) async fn open_id(session: &Session, command: OpenIdCommand) -> Result<(), Failure> {
    match command {
        OpenIdCommand::Show(provider) => {
            let settings = current(session, &provider.app).await?.unwrap_or_default();
            let found = settings["identityProviders"][CUSTOM][&provider.provider_name].clone();
            if found.is_null() {
                return Err(missing(&provider.provider_name));
            }
            session.print(found, View::Plain)
        }
        OpenIdCommand::Add(args) => write(session, *args, true).await,
        OpenIdCommand::Update(args) => write(session, *args, false).await,
        OpenIdCommand::Remove { provider, yes } => {
            let name = &provider.provider_name;
            session.confirm(&format!("Remove the provider `{name}`?"), yes)?;
            let mut settings = editable(session, &provider.app).await?;
            let providers = settings["identityProviders"][CUSTOM].as_object_mut();
            if providers.is_none_or(|providers| providers.remove(name).is_none()) {
                return Err(missing(name));
            }
            put(session, &provider.app, &settings).await?;
            session.print(json!({}), View::Plain)
        }
    }
}

async fn write(session: &Session, args: OpenIdArgs, is_new: bool) -> Result<(), Failure> {
    let OpenIdRef { app, provider_name: name } = &args.provider;
    let mut settings = editable(session, app).await?;
    let is_known = settings["identityProviders"][CUSTOM][name].is_object();
    match (is_new, is_known) {
        (true, true) => {
            return Err(Failure::new(format!("the app has the provider `{name}` already"))
                .hint("cove containerapp auth openid-connect update"));
        }
        (false, false) => return Err(missing(name)),
        _ => {}
    }
    let prefix: String = name.to_lowercase().chars().take(10).collect();
    let secret_name = format!("{prefix}-authentication-secret");
    if let Some(value) = &args.client_secret {
        add_secret(session, app, &secret_name, value, args.yes).await?;
    }
    let found = &mut settings["identityProviders"][CUSTOM][name];
    if let Some(id) = &args.client_id {
        found["registration"]["clientId"] = id.as_str().into();
    }
    let secret = args.client_secret.as_ref().map(|_| secret_name).or(args.client_secret_name);
    if let Some(secret) = secret {
        found["registration"]["clientCredential"]["clientSecretSettingName"] = secret.into();
    }
    if let Some(url) = &args.openid_configuration {
        found["registration"]["openIdConnectConfiguration"]["wellKnownOpenIdConfiguration"] = url.as_str().into();
    }
    match &args.scopes {
        Some(scopes) => found["login"]["scopes"] = list(scopes),
        None if is_new => found["login"]["scopes"] = json!(["openid"]),
        None => {}
    }
    let mut written = put(session, app, &settings).await?;
    session.print(written["identityProviders"][CUSTOM][name].take(), View::Plain)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ProviderArgs,
    }

    fn check(provider: Provider, mut found: Value, line: &str, expected: Value) {
        let args = Line::parse_from(format!("x -g rg -n web {line}").split(' ')).args;
        apply(&mut found, &args, &provider.spelling());
        assert_eq!(found, expected);
    }

    #[test]
    fn each_provider_is_spelt_its_way() {
        check(
            Provider::Twitter,
            json!({}),
            "--consumer-key k --consumer-secret s",
            json!({"registration": {"consumerKey": "k",
                "consumerSecretSettingName": "twitter-provider-authentication-secret"}}),
        );
        check(
            Provider::Facebook,
            json!({"registration": {"appId": "old"}}),
            "--app-id k --app-secret-name s --scopes a,b --graph-api-version v1",
            json!({"registration": {"appId": "k", "appSecretSettingName": "s"}, "login": {"scopes": ["a", "b"]},
                "graphApiVersion": "v1"}),
        );
    }

    #[test]
    fn a_newer_proof_replaces_the_older() {
        check(
            Provider::Microsoft,
            json!({"registration": {"clientId": "i", "clientSecretSettingName": "s"}}),
            "--thumbprint t --tenant-id x --allowed-audiences a",
            json!({"registration": {"clientId": "i", "clientSecretCertificateThumbprint": "t",
                "openIdIssuer": "https://login.microsoftonline.com/x/v2.0"}, "validation": {"allowedAudiences": ["a"]}}),
        );
    }
}
