//! Reads what changed in the store, off the planning task, in the order of the changes.
//!
//! **Invariant:** the batches up to the first last one hold every app there is; nothing is planned or judged an orphan
//! before it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use cove_base::Backoff;
use cove_model::{
    ContainerApp, Environment, HttpRouteConfig, Resiliency, ResourceId, Revision, RevisionStatus, WorkloadProfile,
};
use cove_reconcile::AppPhase;
use cove_runtime::RegistryLogin;
use cove_store::{Provisioning, Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    auth,
    storages::{self, Storages},
};

/// Kind of the resources that are reconciled.
const APP_KIND: &str = "microsoft.app/containerapps";
/// Kind of the resources that apps live in.
pub(crate) const ENVIRONMENT_KIND: &str = "microsoft.app/managedenvironments";

/// Kind of the resiliency policies of an app; the first counts, and the API takes only one.
const RESILIENCY_KIND: &str = "microsoft.app/containerapps/resiliencypolicies";

/// Kind of the path routings of an environment.
const PATH_ROUTES_KIND: &str = "microsoft.app/managedenvironments/httprouteconfigs";

/// Apps that are read and handed on together.
const PART_MAX: usize = 256;

/// Environments by id, as read for one look at many apps; `None` = not there.
type Environments = HashMap<ResourceId, Option<Environment>>;

/// An app as the store has it; its `Debug` text has no secrets.
#[derive(Clone)]
pub(crate) struct AppData {
    pub(crate) app: ContainerApp,
    pub(crate) generation: u64,
    pub(crate) phase: AppPhase,
    pub(crate) domain: String,
    /// A domain of the user's own below which it answers too.
    pub(crate) suffix: Option<String>,
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
    /// Apps that are there and whose document or secrets are damaged.
    pub(crate) unreadable: Vec<ResourceId>,
    pub(crate) path_routes: Vec<(ResourceId, Option<PathRoutesData>)>,
    /// Nothing more belongs to it.
    pub(crate) is_last: bool,
}

/// A path routing as the store has it.
#[derive(Clone, Debug)]
pub(crate) struct PathRoutesData {
    pub(crate) config: HttpRouteConfig,
    pub(crate) environment: ResourceId,
    pub(crate) domain: String,
    /// A domain of the user's own below which it answers too.
    pub(crate) suffix: Option<String>,
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
        // whoever takes the batches may have ended before
        let loading = shutdown.run_until_cancelled(load_all(&store, &todo, is_first, &batches));
        let Some(loaded) = loading.await else { return };
        match loaded {
            Ok(true) => {
                backoff.reset();
                todo.clear();
                is_first = false;
            }
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, "failed to read changed apps");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
        }
    }
}

/// Reads what changed and hands it on in parts, so that never all of it waits in memory; `false` when nobody takes it.
async fn load_all(
    store: &Store,
    ids: &BTreeSet<ResourceId>,
    is_first: bool,
    batches: &mpsc::Sender<Batch>,
) -> Result<bool, StoreError> {
    let (reader, ids) = (store.clone(), ids.clone());
    let Ok(affected) = tokio::task::spawn_blocking(move || Affected::of(&reader, &ids)).await else { return Ok(false) };
    let Affected { apps, routes } = affected?;
    if apps.is_empty() && routes.is_empty() && !is_first {
        return Ok(true);
    }
    let mut environments = Environments::new();
    let mut apps = apps.into_iter().peekable();
    let mut routes = routes.into_iter().collect::<Vec<_>>();
    loop {
        let part: Vec<ResourceId> = apps.by_ref().take(PART_MAX).collect();
        let is_last = apps.peek().is_none();
        let routes = if is_last { std::mem::take(&mut routes) } else { Vec::new() };
        let reader = store.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let mut batch = Batch { is_last, ..Batch::default() };
            for id in part {
                match reader.at_one_moment(|store| load(store, &mut environments, &id)) {
                    Ok(data) => batch.apps.push((id, data.map(Box::new))),
                    // one that cannot be read must not keep all others from being loaded
                    Err(error) if error.is_of_one_document() => {
                        tracing::error!(app = %id, %error, "an app cannot be read; it is left as it runs until it is put again");
                        batch.unreadable.push(id);
                    }
                    Err(error) => return Err(error),
                }
            }
            for id in routes {
                let data = load_path_routes(&reader, &id)?;
                batch.path_routes.push((id, data));
            }
            Ok::<_, StoreError>((batch, environments))
        });
        let Ok(loaded) = loading.await else { return Ok(false) };
        let (batch, kept) = loaded?;
        environments = kept;
        if batches.send(batch).await.is_err() {
            return Ok(false);
        }
        if is_last {
            return Ok(true);
        }
    }
}

/// What some changes are about.
#[derive(Debug, Default)]
struct Affected {
    apps: BTreeSet<ResourceId>,
    routes: BTreeSet<ResourceId>,
}

impl Affected {
    fn of(store: &Store, ids: &BTreeSet<ResourceId>) -> Result<Self, StoreError> {
        let Self { mut apps, mut routes } = Self::default();
        let is = |id: &ResourceId, kind: &str| id.kind().eq_ignore_ascii_case(kind);
        for id in ids {
            if is(id, APP_KIND) {
                apps.insert(id.clone());
            } else if is(id, ENVIRONMENT_KIND) {
                apps.extend(store.ids_in(APP_KIND, id)?);
                routes.extend(store.resources(PATH_ROUTES_KIND, Some(id))?.into_iter().map(|row| row.id));
            } else if is(id, storages::KIND) {
                if let Some(environment) = id.parent() {
                    apps.extend(store.ids_in(APP_KIND, &environment)?);
                }
            } else if is(id, RESILIENCY_KIND) || is(id, auth::KIND) {
                apps.extend(id.parent());
            } else if is(id, PATH_ROUTES_KIND) {
                routes.insert(id.clone());
            }
        }
        Ok(Self { apps, routes })
    }
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
    let found = environment_of(store, &environment)?;
    let domain = found.as_ref().map_or_else(|| "localhost".to_owned(), |found| found.default_domain.clone());
    let suffix = found.and_then(|found| found.suffix).map(|suffix| suffix.name);
    Ok(Some(PathRoutesData { config, environment, domain, suffix }))
}

pub(crate) fn environment_of(store: &Store, id: &ResourceId) -> Result<Option<Environment>, StoreError> {
    let spec = store.resource(id)?.and_then(|row| row.spec);
    Ok(spec.map(serde_json::from_value).transpose()?)
}

/// The workload profile that an app's replicas run on.
fn profile_of(app: &ContainerApp, environment: &Environment) -> Option<WorkloadProfile> {
    profile_of_name(app.workload_profile.as_deref(), &environment.workload_profiles).cloned()
}

/// The workload profile of this name, `Consumption` where there is none.
pub(crate) fn profile_of_name<'a>(name: Option<&str>, profiles: &'a [WorkloadProfile]) -> Option<&'a WorkloadProfile> {
    let name = name.filter(|name| !name.is_empty()).unwrap_or("Consumption");
    profiles.iter().find(|profile| profile.name.eq_ignore_ascii_case(name))
}

fn load(store: &Store, environments: &mut Environments, id: &ResourceId) -> Result<Option<AppData>, StoreError> {
    let Some(row) = store.snapshot::<ContainerApp>(id)? else { return Ok(None) };
    let Some(mut app) = row.spec else { return Ok(None) };
    // only revisions run
    app.template.containers = Vec::new();
    app.template.init_containers = Vec::new();
    if !environments.contains_key(&app.environment) {
        let found = environment_of(store, &app.environment)?;
        environments.insert(app.environment.clone(), found);
    }
    let known = environments.get_key_value(&app.environment);
    if let Some((shared, _)) = known
        && shared.as_str() == app.environment.as_str()
    {
        app.environment = shared.clone();
    }
    let environment = known.and_then(|(_, environment)| environment.as_ref());
    if let Some(ingress) = &mut app.ingress {
        ingress.policies.resiliency = resiliency_of(store, id)?;
        let limits = environment.map(|environment| environment.limits).unwrap_or_default();
        ingress.policies.limits = ingress.policies.limits.or(limits);
        ingress.policies.names_callers = environment.is_some_and(|environment| environment.names_callers);
    }
    let profile = environment.and_then(|environment| profile_of(&app, environment));
    let domain = environment.map_or_else(|| "localhost".to_owned(), |environment| environment.default_domain.clone());
    let suffix = environment.and_then(|environment| environment.suffix.as_ref()).map(|suffix| suffix.name.clone());
    let secrets = store.secrets(id)?;
    if let Some(ingress) = &mut app.ingress {
        ingress.policies.auth = auth::load(store, id, &secrets)?;
    }
    let logins = logins(&app, &secrets);
    let mut revisions = store.revision_snapshots(id)?;
    for (revision, _) in &mut revisions {
        revision.app = app.id.clone();
        revision.template.containers.shrink_to_fit();
    }
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
        suffix,
        profile,
        revisions,
        secrets,
        logins,
        storages,
        config_hash,
        app,
    }))
}

/// What keeps calls to an app from failing.
fn resiliency_of(store: &Store, app: &ResourceId) -> Result<Resiliency, StoreError> {
    let rows = store.resources(RESILIENCY_KIND, Some(app))?;
    let Some(spec) = rows.into_iter().find_map(|row| row.spec) else { return Ok(Resiliency::default()) };
    Ok(serde_json::from_value(spec).unwrap_or_else(|error| {
        tracing::error!(%app, %error, "a resiliency policy cannot be read; the app goes without one");
        Resiliency::default()
    }))
}

fn logins(app: &ContainerApp, secrets: &BTreeMap<String, String>) -> Vec<RegistryLogin> {
    logins_of(&app.registries, secrets)
}

pub(crate) fn logins_of(registries: &[cove_model::Registry], secrets: &BTreeMap<String, String>) -> Vec<RegistryLogin> {
    let login = |registry: &cove_model::Registry| {
        let username = registry.username.clone()?;
        let password = secrets.get(registry.password_secret_ref.as_deref()?)?.clone();
        Some(RegistryLogin { server: registry.server.clone(), username, password })
    };
    registries.iter().filter_map(login).collect()
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
