//! `containerapp ingress access-restriction|cors|sticky-sessions`.

use serde_json::{Value, json};

use super::{
    super::{AppRef, whole},
    ingress,
};
use crate::{failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AccessCommand {
    /// List the restrictions.
    List(AppRef),
    /// Add a restriction or change it.
    Set {
        #[command(flatten)]
        app: AppRef,
        /// Name of the restriction.
        #[arg(long)]
        rule_name: String,
        /// Addresses in CIDR notation, such as 198.51.100.0/24.
        #[arg(long, value_name = "CIDR")]
        ip_address: String,
        /// Allow or Deny; the same for all restrictions.
        #[arg(long, ignore_case = true, value_parser = ["Allow", "Deny"])]
        action: String,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
    },
    /// Remove a restriction.
    Remove {
        #[command(flatten)]
        app: AppRef,
        /// Name of the restriction.
        #[arg(long)]
        rule_name: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CorsCommand {
    /// Show the policy.
    Show(AppRef),
    /// Set the policy.
    Enable {
        #[command(flatten)]
        app: AppRef,
        #[command(flatten)]
        policy: CorsArgs,
    },
    /// Change the policy.
    Update {
        #[command(flatten)]
        app: AppRef,
        #[command(flatten)]
        policy: CorsArgs,
    },
    /// Remove the policy.
    Disable(AppRef),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CorsArgs {
    /// Origins, such as `https://example.com`; one empty text for none.
    #[arg(short = 'r', long, num_args = 0.., value_name = "ORIGIN")]
    allowed_origins: Option<Vec<String>>,
    /// Methods; one empty text for none.
    #[arg(short = 'm', long, num_args = 0.., value_name = "METHOD")]
    allowed_methods: Option<Vec<String>>,
    /// Request headers; one empty text for none.
    #[arg(short = 'a', long, num_args = 0.., value_name = "HEADER")]
    allowed_headers: Option<Vec<String>>,
    /// Response headers that scripts may read; one empty text for none.
    #[arg(short = 'e', long, num_args = 0.., value_name = "HEADER")]
    expose_headers: Option<Vec<String>>,
    /// Let requests carry cookies.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    allow_credentials: Option<bool>,
    /// Seconds that a browser keeps the answer; empty for none.
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "SECONDS")]
    max_age: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum StickyCommand {
    /// Show the affinity.
    Show(AppRef),
    /// Set the affinity.
    Set {
        #[command(flatten)]
        app: AppRef,
        /// sticky or none.
        #[arg(long, ignore_case = true, value_parser = ["sticky", "none"])]
        affinity: String,
    },
}

/// Part `name` of the app's ingress.
async fn part(session: &Session, app: &AppRef, name: &str) -> Result<Value, Failure> {
    let app = session.client.get(&app.path(session)).await?;
    Ok(ingress(&app)?[name].clone())
}

/// Sets part `name` of the ingress; what it is afterwards.
async fn set(session: &Session, app: &AppRef, name: &str, value: Value) -> Result<Value, Failure> {
    let body = json!({ "ingress": { name: value } });
    let app = whole::patch_configuration(session, &app.path(session), body).await?;
    Ok(ingress(&app)?[name].clone())
}

pub(super) async fn access(session: &Session, command: AccessCommand) -> Result<(), Failure> {
    const PART: &str = "ipSecurityRestrictions";
    let list = |value: Value| value.as_array().cloned().unwrap_or_default();
    let same = |rule: &Value, name: &str| rule["name"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name));
    let changed = match command {
        AccessCommand::List(app) => part(session, &app, PART).await?,
        AccessCommand::Set { app, rule_name, ip_address, action, description } => {
            let mut rules = list(part(session, &app, PART).await?);
            let mut rule = json!({ "name": rule_name, "ipAddressRange": ip_address, "action": action });
            let known = rules.iter().position(|known| same(known, &rule_name));
            if let Some(text) = description.map(Value::from).or_else(|| Some(rules[known?]["description"].clone()))
                && text.is_string()
            {
                rule["description"] = text;
            }
            match known {
                Some(index) => rules[index] = rule,
                None => rules.push(rule),
            }
            set(session, &app, PART, Value::Array(rules)).await?
        }
        AccessCommand::Remove { app, rule_name } => {
            let mut rules = list(part(session, &app, PART).await?);
            let before = rules.len();
            rules.retain(|rule| !same(rule, &rule_name));
            if rules.len() == before {
                return Err(Failure::not_found(format!("the app has no restriction `{rule_name}`")));
            }
            set(session, &app, PART, Value::Array(rules)).await?
        }
    };
    session.print(Value::Array(list(changed)), View::Plain)
}

pub(super) async fn cors(session: &Session, command: CorsCommand) -> Result<(), Failure> {
    const PART: &str = "corsPolicy";
    let policy = match command {
        CorsCommand::Show(app) => part(session, &app, PART).await?,
        CorsCommand::Enable { app, policy } => {
            if policy.allowed_origins.is_none() {
                return Err(Failure::usage("which origins?").hint("add --allowed-origins"));
            }
            set(session, &app, PART, policy.body()?).await?
        }
        CorsCommand::Update { app, policy } => set(session, &app, PART, policy.body()?).await?,
        CorsCommand::Disable(app) => set(session, &app, PART, Value::Null).await?,
    };
    session.print(if policy.is_null() { json!({}) } else { policy }, View::Plain)
}

impl CorsArgs {
    fn body(&self) -> Result<Value, Failure> {
        let mut policy = json!({});
        let lists = [
            ("allowedOrigins", &self.allowed_origins),
            ("allowedMethods", &self.allowed_methods),
            ("allowedHeaders", &self.allowed_headers),
            ("exposeHeaders", &self.expose_headers),
        ];
        for (name, list) in lists {
            if let Some(list) = list {
                policy[name] = list.iter().filter(|item| !item.is_empty()).cloned().collect::<Vec<_>>().into();
            }
        }
        if let Some(allowed) = self.allow_credentials {
            policy["allowCredentials"] = allowed.into();
        }
        match self.max_age.as_deref() {
            None => {}
            Some("") => policy["maxAge"] = Value::Null,
            Some(text) => {
                let seconds: u32 = text.parse().map_err(|_| {
                    Failure::usage(format!("--max-age: `{text}` is not a number of seconds")).hint("such as 600")
                })?;
                policy["maxAge"] = seconds.into();
            }
        }
        Ok(policy)
    }
}

pub(super) async fn sticky(session: &Session, command: StickyCommand) -> Result<(), Failure> {
    const PART: &str = "stickySessions";
    let found = match command {
        StickyCommand::Show(app) => part(session, &app, PART).await?,
        StickyCommand::Set { app, affinity } => set(session, &app, PART, json!({ "affinity": affinity })).await?,
    };
    session.print(found, View::Plain)
}
