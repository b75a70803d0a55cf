//! Reads what changed in the store, off the planning task, in the order of the changes.
//!
//! **Invariant:** the first batch holds every app there is; nothing is planned or judged an orphan before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use cove_base::Backoff;
use cove_model::{ContainerApp, Environment, HttpRouteConfig, ResourceId, Revision, RevisionStatus, WorkloadProfile};
use cove_reconcile::AppPhase;
use cove_runtime::RegistryLogin;
use cove_store::{Provisioning, Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::storages::{self, Storages};

/// Kind of the resources that are reconciled.
const APP_KIND: &str = "microsoft.app/containerapps";
/// Kind of the resources that apps live in.
const ENVIRONMENT_KIND: &str = "microsoft.app/managedenvironments";

/// Kind of the path routings of an environment.
const PATH_ROUTES_KIND: &str = "microsoft.app/managedenvironments/httprouteconfigs";

/// An app as the store has it; its `Debug` text has no secrets.
#[derive(Clone)]
pub(crate) struct AppData {
    pub(crate) app: ContainerApp,
    pub(crate) generation: u64,
    pub(crate) phase: AppPhase,
    pub(crate) domain: String,
    /// Oldest first.
    pub(crate) revisions: Vec<(Revision, RevisionStatus)>,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) logins: Vec<RegistryLogin>,
    /// Workload profile that its replicas run on.
    pub(crate) profile: Option<WorkloadProfile>,
    /// Storages that its revisions' volumes name.
    pub(crate) storages: Storages,
    /// Of all that goes into a replica besides its template.
    pub(crate) config_hash: u64,
}

impl fmt::Debug for AppData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppData")
            .field("id", &self.app.id)
            .field("generation", &self.generation)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}

/// What became of some resources; `None` = gone.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) apps: Vec<(ResourceId, Option<Box<AppData>>)>,
    pub(crate) path_routes: Vec<(ResourceId, Option<PathRoutesData>)>,
}

/// A path routing as the store has it.
#[derive(Clone, Debug)]
pub(crate) struct PathRoutesData {
    pub(crate) config: HttpRouteConfig,
    pub(crate) environment: ResourceId,
    pub(crate) domain: String,
}

/// Follows the change feed until shutdown.
pub(crate) async fn follow(store: Store, batches: mpsc::Sender<Batch>, shutdown: CancellationToken) {
    let mut changes = store.changes();
    let mut is_first = true;
    let mut todo: BTreeSet<ResourceId> = BTreeSet::new();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        todo.extend(changes.take());
        if todo.is_empty() && !is_first {
            tokio::select! {
                () = shutdown.cancelled() => return,
                dirty = changes.next() => todo.extend(dirty),
            }
        }
        let (reader, ids) = (store.clone(), todo.clone());
        let loaded = tokio::task::spawn_blocking(move || load_all(&reader, &ids)).await;
        match loaded {
            Ok(Ok(batch)) => {
                backoff.reset();
                todo.clear();
                let is_empty = batch.apps.is_empty() && batch.path_routes.is_empty();
                if (is_first || !is_empty) && batches.send(batch).await.is_err() {
                    return;
                }
                is_first = false;
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "failed to read changed apps");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
            Err(_stopped) => return,
        }
    }
}

fn load_all(store: &Store, ids: &BTreeSet<ResourceId>) -> Result<Batch, StoreError> {
    let mut apps: BTreeSet<ResourceId> = BTreeSet::new();
    let mut routes: BTreeSet<ResourceId> = BTreeSet::new();
    for id in ids {
        match id.kind().to_ascii_lowercase().as_str() {
            APP_KIND => {
                apps.insert(id.clone());
            }
            ENVIRONMENT_KIND => {
                apps.extend(apps_of(store, id)?);
                routes.extend(store.resources(PATH_ROUTES_KIND, Some(id))?.into_iter().map(|row| row.id));
            }
            storages::KIND => {
                if let Some(environment) = id.parent() {
                    apps.extend(apps_of(store, &environment)?);
                }
            }
            PATH_ROUTES_KIND => {
                routes.insert(id.clone());
            }
            _ => {}
        }
    }
    let mut batch = Batch::default();
    for id in apps {
        let data = load(store, &id)?;
        batch.apps.push((id, data.map(Box::new)));
    }
    for id in routes {
        let data = load_path_routes(store, &id)?;
        batch.path_routes.push((id, data));
    }
    Ok(batch)
}

fn load_path_routes(store: &Store, id: &ResourceId) -> Result<Option<PathRoutesData>, StoreError> {
    let Some(row) = store.resource(id)? else { return Ok(None) };
    let Some(spec) = row.spec.filter(|_| row.provisioning != Provisioning::Deleting) else { return Ok(None) };
    let Some(environment) = id.parent() else { return Ok(None) };
    let config: HttpRouteConfig = match serde_json::from_value(spec) {
        Ok(config) => config,
        Err(error) => {
            // one that cannot be read must not keep all others from being loaded
            tracing::error!(id = %id, %error, "a path routing cannot be read; its host answers nothing");
            return Ok(None);
        }
    };
    let domain = domain_of(store, &environment)?;
    Ok(Some(PathRoutesData { config, environment, domain }))
}

fn domain_of(store: &Store, environment: &ResourceId) -> Result<String, StoreError> {
    let environment = environment_of(store, environment)?;
    Ok(environment.map_or_else(|| "localhost".to_owned(), |environment| environment.default_domain))
}

fn environment_of(store: &Store, id: &ResourceId) -> Result<Option<Environment>, StoreError> {
    let spec = store.resource(id)?.and_then(|row| row.spec);
    Ok(spec.map(serde_json::from_value).transpose()?)
}

/// The workload profile that an app's replicas run on.
fn profile_of(app: &ContainerApp, environment: &Environment) -> Option<WorkloadProfile> {
    let name = app.workload_profile.as_deref().filter(|name| !name.is_empty()).unwrap_or("Consumption");
    environment.workload_profiles.iter().find(|profile| profile.name.eq_ignore_ascii_case(name)).cloned()
}

/// Apps of an environment that changed: their host names may have.
fn apps_of(store: &Store, environment: &ResourceId) -> Result<Vec<ResourceId>, StoreError> {
    let rows = store.resources(APP_KIND, None)?;
    let is_inside = |spec: &serde_json::Value| {
        let id = spec.get("environment").and_then(serde_json::Value::as_str);
        id.is_some_and(|id| id.eq_ignore_ascii_case(environment.as_str()))
    };
    Ok(rows.into_iter().filter(|row| row.spec.as_ref().is_some_and(is_inside)).map(|row| row.id).collect())
}

fn load(store: &Store, id: &ResourceId) -> Result<Option<AppData>, StoreError> {
    let Some(row) = store.resource(id)? else { return Ok(None) };
    let Some(spec) = row.spec else { return Ok(None) };
    let app: ContainerApp = serde_json::from_value(spec)?;
    let environment = environment_of(store, &app.environment)?;
    let profile = environment.as_ref().and_then(|environment| profile_of(&app, environment));
    let domain = environment.map_or_else(|| "localhost".to_owned(), |environment| environment.default_domain);
    let secrets = store.secrets(id)?;
    let logins = logins(&app, &secrets);
    let revisions = store.revisions(id)?;
    let storages = storages::load(store, &app.environment, &revisions)?;
    let config_hash = config_hash(&app, &secrets, &storages);
    Ok(Some(AppData {
        generation: row.generation,
        phase: match row.provisioning {
            Provisioning::InProgress => AppPhase::InProgress,
            Provisioning::Succeeded | Provisioning::Failed | Provisioning::Canceled => AppPhase::Settled,
            Provisioning::Deleting => AppPhase::Deleting,
        },
        domain,
        profile,
        revisions: revisions.into_iter().map(|row| (row.revision, row.status)).collect(),
        secrets,
        logins,
        storages,
        config_hash,
        app,
    }))
}

fn logins(app: &ContainerApp, secrets: &BTreeMap<String, String>) -> Vec<RegistryLogin> {
    let login = |registry: &cove_model::Registry| {
        let username = registry.username.clone()?;
        let password = secrets.get(registry.password_secret_ref.as_deref()?)?.clone();
        Some(RegistryLogin { server: registry.server.clone(), username, password })
    };
    app.registries.iter().filter_map(login).collect()
}

fn config_hash(app: &ContainerApp, secrets: &BTreeMap<String, String>, storages: &Storages) -> u64 {
    let mut hasher = DefaultHasher::new();
    secrets.hash(&mut hasher);
    storages::hash(storages, &mut hasher);
    app.ingress.as_ref().and_then(|ingress| ingress.target_port).hash(&mut hasher);
    app.ingress.is_some().hash(&mut hasher);
    for registry in &app.registries {
        (&registry.server, &registry.username, &registry.password_secret_ref).hash(&mut hasher);
    }
    hasher.finish()
}
