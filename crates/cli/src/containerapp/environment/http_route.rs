//! `containerapp env http-route-config`: rules that route by path between apps.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::json;

use super::EnvironmentRef;
use crate::{
    client::{Wait, encode},
    failure::Failure,
    file,
    output::View,
    session::Session,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum HttpRouteCommand {
    /// List configurations.
    List(EnvironmentRef),
    /// Show a configuration.
    Show(RouteRef),
    /// Create a configuration from a file.
    Create {
        #[command(flatten)]
        route: RouteRef,
        /// Its properties as YAML or JSON.
        #[arg(long, value_name = "FILE")]
        yaml: PathBuf,
    },
    /// Replace a configuration from a file.
    Update {
        #[command(flatten)]
        route: RouteRef,
        /// Its properties as YAML or JSON.
        #[arg(long, value_name = "FILE")]
        yaml: PathBuf,
    },
    /// Delete a configuration.
    Delete {
        #[command(flatten)]
        route: RouteRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RouteRef {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// Name of the configuration.
    #[arg(short = 'r', long)]
    http_route_config_name: String,
}

impl RouteRef {
    fn path(&self, session: &Session) -> String {
        format!("{}/httpRouteConfigs/{}", self.environment.path(session), encode(&self.http_route_config_name))
    }
}

pub(super) async fn run(session: &Session, command: HttpRouteCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        HttpRouteCommand::List(environment) => {
            session.print(client.list(&format!("{}/httpRouteConfigs", environment.path(session))).await?, View::Routes)
        }
        HttpRouteCommand::Show(route) => session.print(client.get(&route.path(session)).await?, View::Routes),
        HttpRouteCommand::Create { route, yaml } => write(session, Method::PUT, &route, &yaml).await,
        HttpRouteCommand::Update { route, yaml } => write(session, Method::PATCH, &route, &yaml).await,
        HttpRouteCommand::Delete { route, yes } => {
            session.confirm(&format!("Delete the route configuration `{}`?", route.http_route_config_name), yes)?;
            client.delete(&route.path(session), Wait::Done).await
        }
    }
}

async fn write(session: &Session, method: Method, route: &RouteRef, file: &std::path::Path) -> Result<(), Failure> {
    let mut properties = file::yaml(file)?;
    if !properties.is_object() {
        return Err(Failure::new(format!("`{}` is not an object with `rules`", file.display())));
    }
    // the whole resource, as `show` prints it, is taken too
    if properties["properties"].is_object() {
        properties = properties["properties"].take();
    }
    let body = json!({ "properties": properties });
    let written = session.client.write(method, &route.path(session), Some(&body), Wait::Done).await?;
    session.print(written, View::Routes)
}
