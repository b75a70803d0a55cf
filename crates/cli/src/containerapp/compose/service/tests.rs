//! Services become apps, and mistakes name the service.

use expect_test::{Expect, expect};

use super::*;

fn check(yaml: &str, expected: &Expect) {
    let variables = BTreeMap::from([("TAG".to_owned(), "v2".to_owned())]);
    let mut compose: Value = serde_saphyr::from_str(yaml).unwrap();
    let said = substitute(&mut compose, &variables)
        .and_then(|()| read(&compose, Path::new("/srv")))
        .map(|services| {
            let lines = services.iter().map(|service| {
                let image = service.image.as_deref().unwrap_or("built");
                format!("{} {}\n  ignored {:?}\n", service.name, service.body(image)["properties"], service.ignored)
            });
            lines.collect::<String>()
        })
        .unwrap_or_else(|failure| format!("{}\n", failure.text));
    expected.assert_eq(&said);
}

#[test]
fn services_become_apps() {
    check(
        "
services:
  web:
    image: nginx:${TAG}
    ports: ['8080:80']
    depends_on: [api]
    environment: [A=1, B=$$x]
    restart: always
    deploy: {replicas: 2, resources: {reservations: {cpus: '0.5', memory: 1G}}}
  api:
    image: api:${OTHER:-latest}
    expose: [9000]
    entrypoint: /bin/sh -c 'sleep 1'
    command: [x]
    environment: {LEVEL: 3}
    x-azure-scale: {minReplicas: 0, maxReplicas: 7}
    x-azure-ingress: {transport: http2}
",
        &expect![[r#"
            api {"configuration":{"activeRevisionsMode":"single","ingress":{"external":false,"targetPort":9000,"transport":"http2"}},"template":{"containers":[{"args":["x"],"command":["/bin/sh","-c","sleep 1"],"env":[{"name":"LEVEL","value":"3"}],"image":"api:latest","name":"api"}],"scale":{"maxReplicas":7,"minReplicas":0}}}
              ignored []
            web {"configuration":{"activeRevisionsMode":"single","ingress":{"external":true,"targetPort":80,"transport":"auto"}},"template":{"containers":[{"env":[{"name":"A","value":"1"},{"name":"B","value":"$x"}],"image":"nginx:v2","name":"web","resources":{"cpu":0.5,"memory":"1Gi"}}],"scale":{"maxReplicas":2,"minReplicas":2}}}
              ignored ["restart"]
        "#]],
    );
}

#[test]
fn mistakes_name_the_service() {
    check(
        "version: '3'",
        &expect![[r#"
        the compose file has no `services`
    "#]],
    );
    check(
        "services: {a: {ports: ['80']}}",
        &expect![[r#"
        service `a`: it has neither `image` nor `build`
    "#]],
    );
    check(
        "services: {a: {image: x, ports: ['80', '81:82']}}",
        &expect![[r#"
        service `a`: several ports (80, 82): say which one is the ingress's with `x-azure-ingress: {targetPort: 80}`
    "#]],
    );
    check(
        "services: {a: {image: x, platform: linux/arm64}}",
        &expect![[r#"
        service `a`: platform `linux/arm64`; images are linux/amd64
    "#]],
    );
    check(
        "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}",
        &expect![[r#"
        services depend on each other in a circle: a, b
    "#]],
    );
    check(
        "services: {a: {image: '${NO_SUCH:?say which}'}}",
        &expect![[r#"
        `NO_SUCH` is not set: say which
    "#]],
    );
    check(
        "services: {a: {image: x, secrets: [pw]}}",
        &expect![[r#"
        service `a`: the secret `pw` has no `file` and no `environment`
    "#]],
    );
}

#[test]
fn sizes_and_words() {
    assert_eq!(gibibytes("512M"), Some(0.5));
    assert_eq!(gibibytes("2gb"), Some(2.0));
    assert_eq!(gibibytes("1073741824"), Some(1.0));
    assert_eq!(gibibytes("1x"), None);
    assert_eq!(split(r#"a "b c" 'd' e\ f """#), ["a", "b c", "d", "e f", ""]);
}
