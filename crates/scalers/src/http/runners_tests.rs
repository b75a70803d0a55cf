//! GitHub's runners and the agents of Azure Pipelines, against stubs of both APIs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Response;

use super::stub::{Stub, context, measured, once, reply, scalers, trigger};

fn github<'a>(url: &'a str, more: &[(&'a str, &'a str)]) -> crate::Trigger {
    let mut parameters = vec![
        ("githubApiURL", url),
        ("owner", "me"),
        ("runnerScope", "org"),
        ("personalAccessToken", "t"),
        ("labels", "gpu"),
    ];
    parameters.extend_from_slice(more);
    trigger("github-runner", &parameters)
}

/// Two repositories, one of them gone; a run with three jobs, of which one is ours and waits.
fn api(target: &str) -> (u16, &'static str) {
    match target {
        "/orgs/me/repos?page=1" => (200, r#"[{"name":"one"},{"name":"gone"}]"#),
        "/repos/me/one/actions/runs?status=queued&per_page=100" => (200, r#"{"workflow_runs":[{"id":7}]}"#),
        "/repos/me/one/actions/runs?status=in_progress&per_page=100" => (200, r#"{"workflow_runs":[{"id":7}]}"#),
        "/repos/me/one/actions/runs/7/jobs?per_page=100" => (
            200,
            r#"{"jobs":[{"status":"queued","labels":["self-hosted","GPU"]},{"status":"queued","labels":["other"]},
                {"status":"completed","labels":["gpu"]}]}"#,
        ),
        _ => (404, ""),
    }
}

#[tokio::test]
async fn jobs_that_wait_for_our_runners() {
    let stub = Stub::start(|seen| {
        assert_eq!(seen.header("authorization"), "Bearer t");
        let (status, body) = api(&seen.target);
        reply(status, body)
    })
    .await;
    assert_eq!(measured(&github(&stub.url(""), &[])).await, Ok((1.0, true)));
    assert_eq!(measured(&github(&stub.url(""), &[("repos", "gone")])).await, Ok((0.0, false)));
    let error = measured(&github(&stub.url(""), &[("runnerScope", "all")])).await.unwrap_err();
    assert!(error.contains("expected org, ent or repo"), "{error}");
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let stub = Stub::start(|seen| {
        let (status, body) = api(&seen.target);
        if seen.header("if-none-match") == "\"e1\"" {
            return reply(304, "");
        }
        Response::builder().status(status).header("etag", "\"e1\"").body(body.to_owned()).unwrap()
    })
    .await;
    let source = scalers().open(&github(&stub.url(""), &[("enableEtags", "true")]), &context()).unwrap();
    let first = once(source.as_ref()).await.unwrap();
    stub.seen.lock().unwrap().clear();
    assert_eq!(once(source.as_ref()).await.unwrap(), first);
    let known = stub.seen.lock().unwrap().iter().filter(|seen| seen.header("if-none-match") == "\"e1\"").count();
    assert_eq!(known, 4, "the list, two lists of runs and the jobs");
}

#[tokio::test]
async fn github_is_left_alone_while_it_says_so() {
    let is_spent = Arc::new(AtomicBool::new(false));
    let spent = Arc::clone(&is_spent);
    let reset = jiff::Timestamp::now().as_second() + 600;
    let stub = Stub::start(move |seen| {
        if spent.load(Ordering::Relaxed) {
            let limited = Response::builder().status(403).header("x-ratelimit-remaining", "0");
            return limited.header("x-ratelimit-reset", reset.to_string()).body(String::new()).unwrap();
        }
        let (status, body) = api(&seen.target);
        reply(status, body)
    })
    .await;
    let source = scalers().open(&github(&stub.url(""), &[]), &context()).unwrap();
    let first = once(source.as_ref()).await.unwrap();
    is_spent.store(true, Ordering::Relaxed);
    assert_eq!(once(source.as_ref()).await.unwrap(), first, "the last answer stands");
    let asked = stub.seen.lock().unwrap().len();
    assert_eq!(once(source.as_ref()).await.unwrap(), first);
    assert_eq!(stub.seen.lock().unwrap().len(), asked, "it is not asked");
    let error = measured(&github(&stub.url(""), &[])).await.unwrap_err();
    assert!(error.contains("is asked too often; again at "), "{error}");
}

#[tokio::test]
async fn jobs_of_an_agent_pool() {
    let stub = Stub::start(|seen| {
        assert_eq!(seen.header("authorization"), "Basic OnBhdA==", "no user, the token as password");
        match seen.target.as_str() {
            "/org/_apis/distributedtask/pools?poolName=my+pool" => reply(200, r#"{"value":[{"id":3}]}"#),
            "/org/_apis/distributedtask/pools/3/jobrequests?%24top=250" => reply(
                200,
                r#"{"value":[{"demands":["java","Agent.Version -gtVersion 2"]},{"result":"succeeded"},{"demands":["gpu"]}]}"#,
            ),
            "/org/_apis/distributedtask/pools/3/jobrequests" => {
                reply(200, r#"{"value":[{"matchedAgents":[{"name":"tpl"}]},{"matchedAgents":[{"name":"x"}]},{}]}"#)
            }
            _ => reply(200, r#"{"value":[]}"#),
        }
    })
    .await;
    let url = stub.url("/org");
    let pool = |more: &[(&'static str, &'static str)]| {
        let mut parameters = vec![("organizationURL", url.as_str()), ("personalAccessToken", "pat")];
        parameters.extend_from_slice(more);
        trigger("azure-pipelines", &parameters)
    };
    assert_eq!(measured(&pool(&[("poolName", "my pool")])).await, Ok((2.0, true)));
    assert_eq!(measured(&pool(&[("poolID", "3"), ("demands", "java")])).await, Ok((1.0, true)));
    assert_eq!(measured(&pool(&[("poolID", "3"), ("parent", "tpl")])).await, Ok((1.0, true)));
    let error = measured(&pool(&[("poolName", "none")])).await.unwrap_err();
    assert!(error.ends_with("/org has 0 agent pools of the name `none`; expected one"), "{error}");
}
