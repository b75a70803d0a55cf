//! The command line against a live server: containers really run, so this needs root.

mod frozen;
mod load;
mod restart;
mod server;

use std::time::{Duration, Instant};

use expect_test::expect;
use server::{Ran, Server};

const IMAGE: &str = "cove.local/sample:latest";
const LIMIT: Duration = Duration::from_secs(60);

/// Looks again until `what` is so; the look itself takes time, so it does not spin.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
    }
}

#[test]
fn an_app_lives_its_life_by_commands() {
    let server = Server::start();
    server.ok("group create -n rg -l local");
    server.ok("containerapp env create -g rg -n env --logs-destination none");
    let created = server.ok(&format!(
        "containerapp create -g rg -n web --environment env --image {IMAGE} --ingress external --target-port 80 \
         --min-replicas 0 --env-vars COLOUR=blue PASSWORD=secretref:pw --secrets pw=hidden --query properties.provisioningState -o tsv"
    ));
    assert_eq!(created, "Succeeded\n");
    assert_eq!(server.ok("group exists -n rg"), "true\n");
    expect![[r#"
        Name  State
        ----  ---------
        web   Succeeded
    "#]]
    .assert_eq(&server.ok("containerapp list -o table --query [].{Name:name,State:properties.provisioningState}"));

    let fqdn = server.ok("containerapp show -g rg -n web --query properties.configuration.ingress.fqdn -o tsv");
    let (status, body) = server.get(fqdn.trim(), "/env");
    assert_eq!(status, 200);
    assert!(body.contains("COLOUR=blue\n") && body.contains("PASSWORD=hidden\n"), "{body}");
    let log = server.ok("containerapp logs show -g rg -n web --format text --tail 300");
    assert!(log.contains("sample"), "{log}");
    let events = server.ok("containerapp logs show -g rg -n web --type system --tail 300");
    assert!(events.lines().all(|line| line.starts_with('{')) && events.contains("\"Reason\""), "{events}");

    server.ok("containerapp update -g rg -n web --set-env-vars COLOUR=red --revision-suffix two");
    until("the new revision serves", || server.get(fqdn.trim(), "/env").1.contains("COLOUR=red\n"));
    let names = server.ok("containerapp revision list -g rg -n web --all --query [].name -o tsv");
    assert_eq!(names.lines().filter(|name| name.starts_with("web--")).count(), 2, "{names}");
    assert_eq!(server.ok("containerapp revision restart -g rg -n web --revision web--two -o json"), "\"Success\"\n");
    assert_eq!(
        server.ok("containerapp revision show --name web--two --app web -g rg --query name -o tsv"),
        "web--two\n"
    );

    assert_eq!(
        server.ok("containerapp secret set -g rg -n web --secrets other=x --query [].name -o tsv"),
        "pw\nother\n"
    );
    assert_eq!(server.ok("containerapp secret show -g rg -n web --secret-name pw --query value -o tsv"), "hidden\n");
    assert_eq!(
        server.ok("containerapp secret remove -g rg -n web --secret-names other --query [].name -o tsv"),
        "pw\n"
    );

    let file = server.file("web.yaml", &server.ok("containerapp show -g rg -n web --show-secrets -o yaml"));
    let registry = "containerapp registry set -g rg -n web --server r.example.com --username me --password";
    assert_eq!(server.ok(&format!("{registry} one --query [].username -o tsv")), "me\n");
    assert_eq!(server.ok(&format!("{registry} two --query [].passwordSecretRef -o tsv")), "rexamplecom-me\n");
    let secret = server.ok("containerapp secret show -g rg -n web --secret-name rexamplecom-me --query value -o tsv");
    assert_eq!(secret, "two\n");
    assert_eq!(server.ok("containerapp registry remove -g rg -n web --server r.example.com -o json"), "[]\n");

    server.ok("containerapp revision set-mode -g rg -n web --mode multiple");
    server.ok("containerapp revision copy -g rg -n web --from-revision web--two --set-env-vars COLOUR=green --revision-suffix three");
    let labelled = server.ok("containerapp revision label add -g rg -n web --label old --revision web--two -o table");
    assert!(labelled.contains("old"), "{labelled}");
    server.ok("containerapp ingress traffic set -g rg -n web --revision-weight web--three=100");
    until("the copy serves", || server.get(fqdn.trim(), "/env").1.contains("COLOUR=green\n"));

    server.ok(&format!("containerapp create -g rg -n copy --yaml {file}"));
    let fqdn = server.ok("containerapp show -g rg -n copy --query properties.configuration.ingress.fqdn -o tsv");
    assert!(server.get(fqdn.trim(), "/env").1.contains("PASSWORD=hidden\n"));

    server.ok("containerapp delete -g rg -n copy --yes");
    server.ok("containerapp delete -g rg -n web --yes");
    assert_eq!(server.ok("containerapp list -o json"), "[]\n");
    server.ok("group delete -n rg --yes");
}

#[test]
fn a_sleeping_app_wakes_and_says_how_long_it_took() {
    let server = Server::start();
    server.ok(&format!("containerapp up -n web --image {IMAGE} --ingress external --target-port 80"));
    server.ok("scale zero web");
    until("the app is at zero", || {
        server.ok("containerapp replica list -g cove -n web --query length(@) -o tsv") == "0\n"
    });
    assert_eq!(server.get("web.cove.localhost", "/").0, 200);
    until("the wake is on record", || server.ok("wakes web --query length(@) -o tsv") == "1\n");
    let phases = server.ok("wakes web --query [0].[started_us,first_byte_us] -o tsv");
    assert!(phases.split_whitespace().all(|us| us.parse::<u64>().is_ok_and(|us| us > 0)), "{phases}");
    let explained = server.ok("scale explain web -o table");
    assert!(
        explained.contains("more than the cool-down of 300 s") && explained.contains("a request arrived"),
        "{explained}"
    );
    let traffic = server.ok("containerapp ingress traffic set -g cove -n web --revision-weight latest=100 -o table");
    assert!(traffic.contains("latest") && traffic.contains("100%"), "{traffic}");
    server.ok("containerapp stop -g cove -n web");
    until("a stopped app is not served", || server.get("web.cove.localhost", "/").0 == 404);
    server.ok("containerapp start -g cove -n web");
    until("a started app is served", || server.get("web.cove.localhost", "/").0 == 200);
    let images = server.ok("image list --query [].name -o tsv");
    assert!(images.contains(IMAGE), "{images}");
}

#[test]
fn mistakes_have_their_exit_codes_and_say_what_would_be_right() {
    // none of its apps can come up
    let server = Server::start_impatient();
    let check = |line: &str, code: i32, says: &str| {
        let Ran { status, stderr, .. } = server.run(line);
        assert_eq!(status, Some(code), "{line}: {stderr}");
        assert!(stderr.contains(says), "{line}: {stderr}");
    };
    check("group show -n nowhere", 3, "(ResourceGroupNotFound)");
    check("containerapp show -g nowhere -n web", 3, "could not be found");
    server.ok("group create -n rg");
    server.ok("containerapp env create -g rg -n env");
    check("containerapp show -g rg -n web", 3, "(ResourceNotFound)");
    check("containerapp create -g rg -n web", 2, "the app needs an environment");
    check("containerapp create -g rg -n web --image a --environment other", 3, "other");
    check(&format!("containerapp create -g rg -n web --environment env --image {IMAGE} --cpu 3 --memory 1Gi"), 1, "(");
    check(
        &format!("containerapp create -g rg -n web --environment env --image {IMAGE} --gpu-type nvidia-h100"),
        2,
        "nvidia-a100 or nvidia-t4",
    );
    check("containerapp create -g rg -n web --environment env --image nowhere.invalid/x:y", 1, "nowhere.invalid");
    check("containerapp update -g rg -n web --image nowhere.invalid/x:z", 1, "warning: ");
    let left = server.ok("containerapp create -g rg -n later --environment env --image nowhere.invalid/x:y --no-wait --query name -o tsv");
    assert_eq!(left, "later\n");
    check("containerapp delete -g rg -n web", 2, "add --yes");
    check("containerapp java list", 2, "not built yet");
    check("containerapp list --query [?", 2, "--query");
    check("clock advance 5m", 1, "--clock virtual");
    check("image import /does/not/exist", 1, "failed to read");
    check("nonsense", 2, "nonsense");
}

#[test]
fn a_reader_that_goes_away_ends_nothing_with_a_panic() {
    for line in ["--help", "containerapp create --help", "doctor"] {
        let mut child = server::spawn(line);
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{line}: {said}");
        assert!(output.status.code().is_some(), "{line} was ended by a signal");
    }
}

#[test]
fn the_doctor_looks_where_the_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("cove.toml");
    let doctor = |text: &str| {
        std::fs::write(&config, text).unwrap();
        server::cove(dir.path(), &format!("doctor --config {} -o json", config.display()))
    };
    let folder = dir.path().display();
    let Ran { stdout, .. } = doctor(&format!("[sessions]\ncriu = \"{folder}/criu\"\nvm_guest = \"{folder}/guest\"\n"));
    let checks: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let found = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        (check["state"].as_str().unwrap(), check["found"].as_str().unwrap())
    };
    let criu = format!("CRIU is not installed: there is no program `{folder}/criu`");
    assert_eq!(found("memory of forks"), ("limited", criu.as_str()));
    assert!(found("virtual machines").1.contains(&format!("{folder}/guest")), "{:?}", found("virtual machines"));
    let Ran { status, stderr, .. } = doctor("[sessions]\ncrius = 1\n");
    assert!(status == Some(1) && stderr.contains("crius"), "{stderr}");
}

#[test]
fn without_a_server_there_is_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let Ran { status, stderr, .. } = server::cove(dir.path(), "containerapp list");
    assert_eq!(status, Some(1));
    assert!(stderr.contains("cove serve"), "{stderr}");
    let Ran { status, .. } = server::cove(dir.path(), "purge --yes");
    assert_eq!(status, Some(3));
}
