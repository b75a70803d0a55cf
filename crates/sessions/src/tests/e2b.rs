//! Sandboxes by E2B's API, with a session that is a server of this test.

use cove_base::Clock;
use serde_json::{Value, json};

use super::*;
use crate::E2bPorts;

type Heard = Arc<Mutex<Vec<Value>>>;

/// What came of a request.
type Answered = (u16, Value);

struct Sandboxes {
    service: Arc<Service>,
    heard: Heard,
    ports: Ports,
    world: Arc<World>,
    dir: tempfile::TempDir,
}

impl Sandboxes {
    /// Another server in the place of this one, which has ended: it has the folder and the sessions, and holds none yet.
    fn again(mut self) -> Self {
        assert_eq!(Arc::strong_count(&self.service), 1);
        self.service = Service::with_e2b(self.ports.clone(), Limits::default(), Some(e2b_ports(&self.dir)));
        assert_eq!(self.world.open.load(Ordering::SeqCst), 0);
        self
    }
}

/// A door whose sessions note what they are asked, and say that it was done.
async fn sandboxes() -> Sandboxes {
    let (heard, dir) = (Heard::default(), tempfile::tempdir().unwrap());
    let noted = Arc::clone(&heard);
    let execute = move |asked: String| async move {
        noted.lock().unwrap().push(serde_json::from_str(&asked).unwrap());
        axum::Json(json!({ "status": "Succeeded", "stdout": "", "stderr": "", "exitCode": 0 }))
    };
    let address = serve(Router::new().route("/execute", axum::routing::post(execute))).await;
    let (ports, world) = ports_at(address, SessionContainer::PythonLts);
    let service = Service::with_e2b(ports.clone(), Limits::default(), Some(e2b_ports(&dir)));
    Sandboxes { service, heard, ports, world, dir }
}

fn e2b_ports(dir: &tempfile::TempDir) -> E2bPorts {
    E2bPorts {
        exec: Arc::new(|_| unreachable!("nothing is executed beside the interpreter")),
        clock: Clock::real(),
        dir: dir.path().to_owned().try_into().unwrap(),
    }
}

async fn ask(service: &Arc<Service>, path: &str, headers: &[(&str, &str)], body: Value) -> Answered {
    let mut request = http::Request::builder().method("POST").uri(format!("/e2b/{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = service.handle(Door::Path, request.body(Body::from(body.to_string())).unwrap()).await;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Makes a sandbox; what opens it.
async fn create(service: &Arc<Service>, envs: Value) -> Value {
    let asked = json!({ "templateID": "base", "timeout": 600, "envVars": envs });
    let (status, made) = ask(service, "sandboxes", &[("x-api-key", "key")], asked).await;
    assert_eq!(status, 201, "{made}");
    made
}

async fn run_code(service: &Arc<Service>, sandbox: &Value, asked: Value) -> Answered {
    let text = |name: &str| sandbox[name].as_str().unwrap();
    let headers = [
        ("e2b-sandbox-port", "49999"),
        ("e2b-sandbox-id", text("sandboxID")),
        ("x-access-token", text("envdAccessToken")),
    ];
    ask(service, "sandbox/execute", &headers, asked).await
}

#[tokio::test]
async fn variables_go_with_the_code_that_they_are_for() {
    let Sandboxes { service, heard, dir: _dir, .. } = sandboxes().await;
    let sandbox = create(&service, json!({ "A": "of all", "B": "it's" })).await;
    assert_eq!(heard.lock().unwrap().len(), 0, "nothing runs before there is code");
    for asked in [
        json!({ "code": "1" }),
        json!({ "code": "2", "env_vars": { "A": "of one" } }),
        json!({ "code": "3", "env_vars": { "A": "of one" }, "language": "bash" }),
    ] {
        assert_eq!(run_code(&service, &sandbox, asked).await.0, 200);
    }
    let lasting = json!({ "A": "of all", "B": "it's" });
    assert_eq!(
        *heard.lock().unwrap(),
        [
            json!({ "code": "1", "env": {}, "lasting": lasting, "seconds": 220 }),
            json!({ "code": "2", "env": { "A": "of one" }, "lasting": lasting, "seconds": 220 }),
            json!({ "command": "export B='it'\\''s' \n3", "env": { "A": "of one" }, "seconds": 220 }),
        ]
    );
}

/// Lets others go on until something is so.
async fn until(mut is_so: impl FnMut() -> bool, what: &str) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// Asks for another end of a sandbox: 204 where it is there.
async fn prolong(service: &Arc<Service>, sandbox: &Value) -> u16 {
    let path = format!("sandboxes/{}/timeout", sandbox["sandboxID"].as_str().unwrap());
    ask(service, &path, &[("x-api-key", "key")], json!({ "timeout": 600 })).await.0
}

#[tokio::test]
async fn a_sandbox_is_held_as_soon_as_its_session_is_known_again() {
    let first = sandboxes().await;
    let sandbox = create(&first.service, json!({})).await;
    let Sandboxes { service, world, dir: _dir, .. } = first.again();
    world.is_blank.store(true, Ordering::SeqCst);
    tokio::spawn(Arc::clone(&service).keep_sandboxes(std::future::ready(()), std::future::pending()));
    until(|| world.finds.load(Ordering::SeqCst) > 0, "its session is looked for").await;
    assert_eq!(world.open.load(Ordering::SeqCst), 0);
    assert_eq!(prolong(&service, &sandbox).await, 404, "it is not known yet, and not forgotten");
    world.is_blank.store(false, Ordering::SeqCst);
    until(|| world.open.load(Ordering::SeqCst) == 1, "its session is held").await;
    assert_eq!(prolong(&service, &sandbox).await, 204);
    assert_eq!(world.open.load(Ordering::SeqCst), 1, "once");
}

#[tokio::test]
async fn sandboxes_are_found_before_their_sessions_are_held() {
    let first = sandboxes().await;
    let made = [create(&first.service, json!({})).await, create(&first.service, json!({})).await];
    let Sandboxes { service, world, dir: _dir, .. } = first.again();
    world.is_stuck.store(true, Ordering::SeqCst);
    tokio::spawn(Arc::clone(&service).keep_sandboxes(std::future::ready(()), std::future::pending()));
    until(|| world.finds.load(Ordering::SeqCst) >= 2, "the session of each is looked for").await;
    for sandbox in &made {
        assert_eq!(prolong(&service, sandbox).await, 204);
    }
}

/// Sandboxes that have a file.
fn files(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path()).unwrap().count()
}

#[tokio::test]
async fn a_sandbox_whose_session_ended_is_forgotten() {
    let Sandboxes { service, world, dir, .. } = sandboxes().await;
    let sandbox = create(&service, json!({})).await;
    assert_eq!((files(&dir), world.open.load(Ordering::SeqCst)), (1, 1));
    world.sessions.lock().unwrap().clear();
    assert_eq!(prolong(&service, &sandbox).await, 404);
    assert_eq!(world.open.load(Ordering::SeqCst), 0, "nothing holds its session");
    until(|| files(&dir) == 0, "its file goes too").await;
    assert_eq!(prolong(&service, &sandbox).await, 404);
}

#[tokio::test]
async fn a_full_pool_forgets_sandboxes_that_nobody_asks_for() {
    let Sandboxes { service, world, dir, .. } = sandboxes().await;
    let gone = create(&service, json!({})).await;
    let kept = create(&service, json!({})).await;
    let identifier = format!("e2b-{}", gone["sandboxID"].as_str().unwrap());
    assert!(world.sessions.lock().unwrap().remove(&identifier).is_some());
    let new = create(&service, json!({})).await;
    until(|| files(&dir) == 2, "one is forgotten").await;
    assert_eq!(world.open.load(Ordering::SeqCst), 2);
    for sandbox in [kept, new] {
        assert_eq!(prolong(&service, &sandbox).await, 204);
    }
}

#[tokio::test]
async fn a_sandbox_in_whose_place_another_session_is_is_forgotten() {
    let first = sandboxes().await;
    create(&first.service, json!({})).await;
    let Sandboxes { service, world, dir, .. } = first.again();
    world.sessions.lock().unwrap().values_mut().for_each(|session| session.guid = "another".to_owned());
    tokio::spawn(Arc::clone(&service).keep_sandboxes(std::future::ready(()), std::future::pending()));
    until(|| files(&dir) == 0, "its file goes").await;
    assert_eq!((world.open.load(Ordering::SeqCst), world.sessions.lock().unwrap().len()), (0, 1));
}
