//! Path routing and custom domains.

use std::sync::Arc;

use cove_model::{HttpRoute, HttpRouteRule, HttpRouteTarget, PathMatcher, ResourceId};
use cove_traffic::{AppRoute, Host, HostCertificate, HostRoute, PathRoutes};
use http::Response;

use crate::world::{Backend, World, app_id, environment, parts, raw, reason, revision, route, text, until};

fn rule(matcher: PathMatcher, rewrite: Option<&str>, targets: &[(&str, Option<&str>, Option<u32>)]) -> HttpRouteRule {
    let target = |(app, label, weight): &(&str, Option<&str>, Option<u32>)| HttpRouteTarget {
        app: (*app).to_owned(),
        revision: None,
        label: label.map(str::to_owned),
        weight: *weight,
    };
    HttpRouteRule {
        routes: vec![HttpRoute { matcher, is_case_sensitive: true, prefix_rewrite: rewrite.map(str::to_owned) }],
        targets: targets.iter().map(target).collect(),
    }
}

fn host(rules: Vec<HttpRouteRule>) -> Host {
    let config: ResourceId = environment("env").child("httpRouteConfigs", "site").unwrap();
    let routes = PathRoutes { config, environment: environment("env"), rules };
    Host { route: HostRoute::Paths(Arc::new(routes)), certificate: HostCertificate::Platform }
}

async fn echo(name: &'static str) -> Backend {
    Backend::http(move |request| async move { Response::new(text(format!("{name} {}", request.uri()))) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_lead_to_apps() {
    let world = World::start().await;
    let (one, two, blue) = (echo("one").await, echo("two").await, echo("blue").await);
    world.route("one", route("one"));
    // the route publishes an internal app
    world.route("two", AppRoute { external: false, ..route("two") });
    world.route("two---blue", AppRoute { external: false, ..route("blue") });
    for (app, backend) in [("one", &one), ("two", &two), ("blue", &blue)] {
        world.ready(&revision(app, "v1"), &[backend.address]);
    }
    world.change(|table| {
        let rules = vec![
            rule(PathMatcher::PathSeparatedPrefix("/1".into()), Some("/"), &[("one", None, None)]),
            rule(PathMatcher::Path("/two".into()), None, &[("two", None, None)]),
            rule(PathMatcher::Prefix("/split".into()), None, &[("one", None, Some(75)), ("two", None, Some(25))]),
            rule(PathMatcher::Prefix("/blue".into()), None, &[("two", Some("blue"), None)]),
            rule(PathMatcher::Prefix("/gone".into()), None, &[("gone", None, None)]),
        ];
        table.hosts.insert("site.env.localhost", host(rules));
    });
    let ask = async |path: &str| {
        raw(world.http, &format!("GET {path} HTTP/1.1\r\nhost: site.env.localhost\r\nconnection: close\r\n\r\n")).await
    };
    for (path, expected) in
        [("/1", "one /"), ("/1/a%20b?c=/d", "one /a%20b?c=/d"), ("/two?x", "two /two?x"), ("/blue/x", "blue /blue/x")]
    {
        assert_eq!(parts(&ask(path).await), (200, expected.to_owned()), "{path}");
    }
    for (path, code) in [("/", "no-path-route"), ("/12", "no-path-route"), ("/gone", "route-target-missing")] {
        let answer = ask(path).await;
        assert_eq!((parts(&answer).0, reason(&answer)), (404, code), "{path}");
    }
    let mut hits = 0;
    for _ in 0..100 {
        hits += u32::from(parts(&ask("/split").await).1.starts_with("two"));
    }
    assert!((20..=30).contains(&hits), "{hits}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_wakes_an_app_at_zero() {
    let world = World::start().await;
    let one = echo("one").await;
    world.route("one", route("one"));
    world.change(|table| {
        let rules = vec![rule(PathMatcher::Prefix("/api".into()), Some("/v1"), &[("one", None, None)])];
        table.hosts.insert("site.env.localhost", host(rules));
    });
    let request = "GET /api/x HTTP/1.1\r\nhost: site.env.localhost\r\nconnection: close\r\n\r\n";
    let key = revision("one", "v1");
    let (answer, ()) = tokio::join!(raw(world.http, request), async {
        until("the wake", || !world.activated.lock().unwrap().is_empty()).await;
        world.ready(&key, &[one.address]);
    });
    assert_eq!(parts(&answer), (200, "one /v1/x".into()));
    assert_eq!(world.activated.lock().unwrap()[0], key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_domain_is_another_host_of_the_app() {
    let world = World::with(cove_ingress::IngressConfig { redirect_http: true, ..Default::default() }).await;
    let app = echo("app").await;
    world.ready(&revision("web", "v1"), &[app.address]);
    let route = Arc::new(AppRoute { allow_insecure: false, ..route("web") });
    assert_eq!(route.app, app_id("web"));
    world.change(|table| {
        let host = |certificate| Host { route: HostRoute::App(Arc::clone(&route)), certificate };
        table.hosts.insert("shop.example", host(HostCertificate::Custom(environment("env"))));
        table.hosts.insert("plain.example", host(HostCertificate::Missing));
    });
    let ask = async |host: &str| {
        raw(world.http, &format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await
    };
    assert_eq!(parts(&ask("shop.example").await).0, 301);
    assert_eq!(parts(&ask("plain.example").await), (200, "app /".into()), "without a certificate there is only HTTP");
    world.change(|table| {
        table.hosts.remove("plain.example");
    });
    until("the removal", || true).await;
    let mut answer = ask("plain.example").await;
    for _ in 0..100 {
        if parts(&answer).0 == 404 {
            break;
        }
        answer = ask("plain.example").await;
    }
    assert_eq!(reason(&answer), "unknown-host");
}
