//! Entries of the route table, from specs and from the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cove_model::{
    ContainerApp, CustomDomain, HttpRoute, HttpRouteConfig, HttpRouteRule, HttpRouteTarget, Ingress, IngressPolicies,
    PathMatcher, PortMapping, ResourceId, Transport,
};
use cove_store::PutResource;
use cove_traffic::{AppRoute, AppRouteState, HostCertificate, HostRoute, RouteTable};

use super::{Bench, environment_id as environment, put as put_resource, template};
use crate::{
    edge::{Published, Wanted, of_app, of_paths, publish},
    loader::PathRoutesData,
};

fn certificate() -> ResourceId {
    environment().child("certificates", "cert").unwrap()
}

fn app(name: &str) -> ContainerApp {
    let id = ResourceId::resource("s", "g", "Microsoft.App/containerApps", name).unwrap();
    let mut app = ContainerApp { id, ..super::app(template("sample")) };
    app.ingress = Some(Ingress {
        external: true,
        target_port: Some(8080),
        transport: Transport::Auto,
        allow_insecure: false,
        traffic: Vec::new(),
        exposed_port: None,
        additional_ports: Vec::new(),
        custom_domains: Vec::new(),
        policies: IngressPolicies::default(),
    });
    app
}

fn routes(app: &ContainerApp) -> BTreeMap<String, AppRoute> {
    let ingress = app.ingress.as_ref().unwrap();
    let route = AppRoute {
        app: app.id.clone(),
        environment: app.environment.clone(),
        external: true,
        allow_insecure: false,
        transport: ingress.transport,
        policies: Arc::new(ingress.policies.clone()),
        revisions: Vec::new(),
        state: AppRouteState::Active,
    };
    let name = app.id.name();
    let hosts = [
        format!("{name}.env.localhost"),
        format!("{name}.internal.env.localhost"),
        format!("{name}--v1.env.localhost"),
    ];
    hosts.into_iter().map(|host| (host, route.clone())).collect()
}

fn put(table: &mut RouteTable, published: &mut Published, app: &ContainerApp) -> bool {
    publish(table, published, &app.id, of_app(app, "env.localhost", routes(app))).is_changed
}

fn text(table: &RouteTable) -> Vec<String> {
    let hosts = table.hosts.iter().map(|(host, entry)| match &entry.certificate {
        HostCertificate::Platform => host.to_owned(),
        HostCertificate::Custom(id) => format!("{host} {}", id.name()),
        HostCertificate::Missing => format!("{host} -"),
    });
    let names = table.names.iter().map(|(name, _)| name.split('@').next().unwrap().to_owned());
    let ports = table.tcp.iter().map(|((port, _), route)| {
        format!("tcp {port} {} {} {:?}", route.route.app.name(), route.external, route.target_port)
    });
    hosts.chain(names).chain(ports).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn an_app_has_its_hosts_names_domains_and_ports_and_gives_them_up() {
    let (mut table, mut published) = (RouteTable::default(), Published::default());
    let mut web = app("web");
    let ingress = web.ingress.as_mut().unwrap();
    ingress.custom_domains = vec![
        CustomDomain { name: "Shop.Example".into(), certificate: Some(certificate()) },
        CustomDomain { name: "plain.example".into(), certificate: None },
    ];
    ingress.additional_ports = vec![PortMapping { external: false, target_port: 9000, exposed_port: 9001 }];
    assert!(put(&mut table, &mut published, &web));
    assert_eq!(
        text(&table),
        [
            "plain.example -",
            "shop.example cert",
            "tcp 9001 web false Some(9000)",
            "web",
            "web--v1",
            "web--v1.env.localhost",
            "web.env.localhost",
            "web.internal.env.localhost",
        ]
    );
    assert_eq!(table.environments.get(web.id.key()), Some(&environment()));
    assert!(!put(&mut table, &mut published, &web), "the same again changes nothing");
    let ingress = web.ingress.as_mut().unwrap();
    (ingress.transport, ingress.exposed_port) = (Transport::Tcp, Some(5432));
    ingress.custom_domains.clear();
    ingress.additional_ports.clear();
    assert!(put(&mut table, &mut published, &web));
    assert!(text(&table).contains(&"tcp 5432 web true None".to_owned()), "{:?}", text(&table));
    assert!(!text(&table).iter().any(|line| line.contains("example") || line.contains("9001")));
    assert!(publish(&mut table, &mut published, &web.id, Wanted::default()).is_changed);
    assert_eq!(table, RouteTable::default());
}

#[test]
fn nobody_takes_over_anothers_host_or_port() {
    let mut table = RouteTable::default();
    let (mut first, mut second) = (Published::default(), Published::default());
    let (mut web, mut other) = (app("web"), app("other"));
    for app in [&mut web, &mut other] {
        let ingress = app.ingress.as_mut().unwrap();
        ingress.custom_domains = vec![CustomDomain { name: "shop.example".into(), certificate: None }];
        (ingress.transport, ingress.exposed_port) = (Transport::Tcp, Some(5432));
    }
    put(&mut table, &mut first, &web);
    let outcome = publish(&mut table, &mut second, &other.id, of_app(&other, "env.localhost", routes(&other)));
    assert_eq!(
        outcome.conflicts,
        [
            format!("The host name 'shop.example' belongs to '{}' already.", web.id),
            format!("The TCP port 5432 belongs to '{}' already.", web.id),
        ]
    );
    assert_eq!(table.app("shop.example").unwrap().app, web.id);
    assert_eq!(table.tcp[&(5432, environment())].route.app, web.id);
    assert!(publish(&mut table, &mut first, &web.id, Wanted::default()).is_changed);
    assert!(table.app("shop.example").is_none() && table.app("other.env.localhost").is_some());
    assert!(put(&mut table, &mut second, &other), "free again");
    assert_eq!(table.app("shop.example").unwrap().app, other.id);
}

#[test]
fn apps_answer_below_the_suffix_of_their_environment() {
    let web = app("web");
    let (mut table, mut published) = (RouteTable::default(), Published::default());
    let mut wanted = of_app(&web, "Env.localhost", routes(&web));
    wanted.answer_below("apps.test", "Env.localhost", &environment());
    assert!(publish(&mut table, &mut published, &web.id, wanted).is_changed);
    let hosts: Vec<String> = text(&table).into_iter().filter(|line| line.contains(".test")).collect();
    assert_eq!(hosts, ["web--v1.apps.test env", "web.apps.test env"], "and no internal names");
    assert!(put(&mut table, &mut published, &web));
    assert!(table.app("web.apps.test").is_none(), "gone with the suffix");
}

#[test]
fn a_path_routing_has_a_host_of_its_own() {
    let id = environment().child("httpRouteConfigs", "Site").unwrap();
    let target = HttpRouteTarget { app: "web".into(), revision: None, label: None, weight: None };
    let route = HttpRoute { matcher: PathMatcher::Prefix("/".into()), is_case_sensitive: true, prefix_rewrite: None };
    let config = HttpRouteConfig {
        id: id.clone(),
        custom_domains: vec![CustomDomain { name: "site.example".into(), certificate: Some(certificate()) }],
        rules: vec![HttpRouteRule { routes: vec![route], targets: vec![target] }],
    };
    let data = PathRoutesData { config, environment: environment(), domain: "env.localhost".into(), suffix: None };
    let (mut table, mut published) = (RouteTable::default(), Published::default());
    let with_suffix = PathRoutesData { suffix: Some("apps.test".into()), ..data.clone() };
    assert!(publish(&mut table, &mut published, &id, of_paths(data)).is_changed);
    assert_eq!(text(&table), ["site.env.localhost", "site.example cert"]);
    assert!(publish(&mut table, &mut published, &id, of_paths(with_suffix)).is_changed);
    assert_eq!(text(&table), ["site.apps.test env", "site.env.localhost", "site.example cert"]);
    assert!(publish(&mut table, &mut published, &id, Wanted::default()).is_changed);
    assert!(table.hosts.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_routings_follow_the_store() {
    let bench = Bench::new().await;
    let id = environment().child("httpRouteConfigs", "site").unwrap();
    let save = async |domains: Vec<CustomDomain>| {
        let config = HttpRouteConfig { id: id.clone(), custom_domains: domains, rules: Vec::new() };
        let spec = Some(serde_json::to_value(config).unwrap());
        let row = PutResource { spec, ..put_resource(id.clone(), bench.clock.now()) };
        bench.store.put(row).await.unwrap();
    };
    save(Vec::new()).await;
    let routes = |host: &str| bench.routes.borrow().host(host).map(|host| host.route.clone());
    bench.until("its host is there", || matches!(routes("site.env.localhost"), Some(HostRoute::Paths(_)))).await;
    save(vec![CustomDomain { name: "site.example".into(), certificate: None }]).await;
    bench.until("its domain is there", || routes("site.example").is_some()).await;
    bench.store.remove(id.clone(), bench.clock.now()).await.unwrap();
    bench.until("nothing is left", || bench.routes.borrow().hosts.is_empty()).await;
}
