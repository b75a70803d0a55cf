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
    _dir: tempfile::TempDir,
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
    let (ports, _) = ports_at(address, SessionContainer::PythonLts);
    let service = Service::with_e2b(ports, Limits::default(), Some(e2b_ports(&dir)));
    Sandboxes { service, heard, _dir: dir }
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
    let Sandboxes { service, heard, _dir } = sandboxes().await;
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
