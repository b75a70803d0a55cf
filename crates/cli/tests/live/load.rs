//! `cove load` against apps that run: every protocol, and a deploy meanwhile.

use expect_test::expect;

use super::server::{Ran, Server};

const IMAGE: &str = "cove.local/sample:latest";
const FIGURES: &str = "--query [protocol,sent,answered,lost,messages] -o tsv";

fn app(server: &Server, name: &str, transport: &str) -> String {
    server.ok(&format!(
        "containerapp create -g rg -n {name} --environment env --image {IMAGE} --ingress external --target-port 80 \
         --transport {transport} --min-replicas 1"
    ));
    let fqdn =
        server.ok(&format!("containerapp show -g rg -n {name} --query properties.configuration.ingress.fqdn -o tsv"));
    format!("{}:{}", fqdn.trim(), server.http_port())
}

#[test]
fn every_protocol_is_loaded_and_nothing_is_lost_over_a_deploy() {
    let server = Server::start();
    server.ok("group create -n rg -l local");
    server.ok("containerapp env create -g rg -n env --logs-destination none");
    let (web, rpc) = (app(&server, "web", "auto"), app(&server, "rpc", "http2"));
    let figures = |line: &str| server.ok(&format!("load {line} {FIGURES}"));
    assert_eq!(figures(&format!("http://{web}/ --requests 200")), "h1\n200\n200\n0\n0\n");
    assert_eq!(figures(&format!("http://{web}/ --protocol h2 --rps 200 --requests 100")), "h2\n100\n100\n0\n0\n");
    let echo = format!("http://{web}/echo --body hello --check echo --requests 50");
    assert_eq!(figures(&echo), "h1\n50\n50\n0\n0\n");
    assert_eq!(figures(&format!("ws://{web}/ws --requests 100 -c 4")), "ws\n100\n100\n0\n100\n");
    let events = format!("http://{web}/stream?n=5&ms=1 --protocol sse --messages 5 --requests 20");
    assert_eq!(figures(&events), "sse\n20\n20\n0\n100\n");
    let unary = format!("http://{rpc}/sample.Sample/Echo --protocol grpc --body hello --check echo --requests 100");
    assert_eq!(figures(&unary), "grpc\n100\n100\n0\n100\n");
    // {1: 7, 2: 1}: seven messages, a millisecond apart
    let count = server.file("count", "\u{8}\u{7}\u{10}\u{1}");
    let stream = format!(
        "http://{rpc}/sample.Sample/Count --protocol grpc --body @{count} --check numbered --messages 7 --requests 20"
    );
    assert_eq!(figures(&stream), "grpc\n20\n20\n0\n140\n");

    let picture = server.file("picture.svg", "");
    let told = server.ok(&format!(
        "load http://{web}/ --rps 100 --during deploy web -g rg --times 2 --every 200ms --duration 1s --svg {picture} -o table"
    ));
    assert!(told.contains("deploy 1") && told.contains("deploy 2") && told.contains("lost               0"), "{told}");
    assert!(std::fs::read_to_string(&picture).unwrap().contains("deploy 2"));
    let names = server.ok("containerapp revision list -g rg -n web --all --query [].name -o tsv");
    assert_eq!(names.lines().filter(|name| name.contains("--load")).count(), 2, "{names}");

    let Ran { status, stdout, stderr } =
        server.run(&format!("load http://{web}/status?code=503 --requests 3 --query losses -o json"));
    assert_eq!((status, stderr.as_str()), (Some(1), "error: 3 requests were lost\n"));
    expect![[r#"
        {
          "status": 3
        }
    "#]]
    .assert_eq(&stdout);
}

#[test]
fn mistakes_are_told_before_anything_is_sent() {
    let server = tempfile::tempdir().unwrap();
    let check = |line: &str, code: i32, says: &str| {
        let Ran { status, stderr, .. } = super::server::cove(server.path(), line);
        assert_eq!(status, Some(code), "{line}: {stderr}");
        assert!(stderr.contains(says), "{line}: {stderr}");
    };
    check("load nowhere", 2, "write http://");
    check("load http://localhost:1/ --rps 0", 2, "one request per hour");
    check("load http://localhost:1/ --header a", 2, "name: value");
    check("load http://localhost:1/ --header content-length:3", 2, "written by the load test itself");
    check("load http://localhost:1/ --during sleep web", 2, "deploy, scale-in or restart");
    check("load http://nowhere.invalid/ --requests 1", 1, "nowhere.invalid");
    check("load http://127.0.0.1:1/ --requests 1 --strict", 1, "1 request was lost");
}
