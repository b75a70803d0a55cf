//! `bench api`: how fast the API answers, alone and with thousands of apps at zero.
//!
//! Times are those of a client: from the first byte sent to the last byte read, over one kept TLS connection.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Outcome, Samples, machine};
use crate::cove::{App, Cove, Options, app_id, list_path, sample_template, versioned};
use crate::process::memory;

const CONFIG: &str = "[api]\nretry_after = 0\n[controller]\ndrain_period = \"0s\"\nfresh_hold = \"0s\"\n";
/// Longest that what was made may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(600);

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct ApiArgs {
    /// Apps at zero in one environment.
    #[arg(long, default_value_t = 10_000)]
    apps: usize,
    /// GETs, and PUTs that change nothing but a tag, before there are many apps.
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Apps that may come up at the same time while many are made; each starts one container.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
}

/// Everything that was measured.
#[derive(Debug)]
struct Figures {
    get: Samples,
    put: Samples,
    create: Samples,
    created_in: Duration,
    pages: Samples,
    listed: usize,
    get_among: Samples,
    rss: u64,
    restart: Duration,
    first_get: Duration,
}

pub(crate) async fn run(binary: PathBuf, args: &ApiArgs) -> anyhow::Result<Outcome> {
    let machine = machine();
    let options = Options { binary, config: CONFIG.to_owned(), arguments: Vec::new() };
    let mut cove = Cove::start(options).await?;
    let figures = measure(&mut cove, args).await;
    let figures = figures.with_context(|| format!("the server's log ends with\n{}", cove.log_tail()))?;
    // apps are not deleted one by one: what is left of them is purged
    cove.kill().await?;
    drop(cove);
    Ok(report(&machine, args, &figures))
}

async fn measure(cove: &mut Cove, args: &ApiArgs) -> anyhow::Result<Figures> {
    cove.create_environment().await?;
    let app = cove.create_app("first", sample_template(0, 1, &[])).await?;
    let get = times(cove, args.requests, |_| ("GET", app.id.clone(), None)).await?;
    let shown = cove.ask("GET", &versioned(&app.id), None).await?;
    let put = times(cove, args.requests, |number| {
        let mut body = shown.clone();
        body["tags"] = json!({"number": number.to_string()});
        ("PUT", app.id.clone(), Some(body))
    })
    .await?;
    cove.until_provisioned(&app.id).await?;
    let (create, created_in) = create(cove, args.apps, args.at_once.into()).await?;
    let (pages, listed) = list(cove).await?;
    ensure!(listed == args.apps + 1, "{listed} apps are listed, {} were made", args.apps + 1);
    let get_among = times(cove, args.requests, |number| {
        let at = number * 7919 % args.apps.max(1);
        ("GET", app_id(&name(at)), None)
    })
    .await?;
    let rss = memory(cove.pid()).context("the server has no memory figures")?.rss;
    cove.kill().await?;
    let begun = Instant::now();
    cove.start_again().await?;
    let restart = begun.elapsed();
    let again = times(cove, 1, |_| ("GET", app.id.clone(), None)).await?;
    Ok(Figures {
        get,
        put,
        create,
        created_in,
        pages,
        listed,
        get_among,
        rss,
        restart,
        first_get: again.percentile(50),
    })
}

fn name(number: usize) -> String {
    format!("many-{number}")
}

/// One request after the other; each must succeed.
async fn times(
    cove: &Cove,
    count: usize,
    request: impl Fn(usize) -> (&'static str, String, Option<Value>),
) -> anyhow::Result<Samples> {
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let (method, id, body) = request(number);
        let path = versioned(&id);
        let begun = Instant::now();
        cove.ask(method, &path, body.as_ref()).await?;
        all.push(begun.elapsed());
    }
    Ok(all.into_iter().collect())
}

/// Makes many apps, each of which starts once and goes to zero; the time of each PUT, and of everything.
async fn create(cove: &Cove, count: usize, at_once: usize) -> anyhow::Result<(Samples, Duration)> {
    let begun = Instant::now();
    let mut puts = Vec::with_capacity(count);
    let mut waiting: std::collections::VecDeque<App> = std::collections::VecDeque::new();
    for number in 0..count {
        let name = name(number);
        let sent = Instant::now();
        cove.put_app(&name, sample_template(0, 1, &[])).await?;
        puts.push(sent.elapsed());
        waiting.push_back(App { id: app_id(&name), host: String::new() });
        if waiting.len() >= at_once
            && let Some(app) = waiting.pop_front()
        {
            rest(cove, &app).await?;
        }
    }
    for app in waiting {
        rest(cove, &app).await?;
    }
    let deadline = Instant::now() + REST_LIMIT;
    for number in 0..count {
        let app = App { id: app_id(&name(number)), host: String::new() };
        while !cove.replicas(&app).await?.is_empty() {
            ensure!(Instant::now() < deadline, "`{}` did not go to zero in time", app.id);
            cove.scale_to_zero(&app).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok((puts.into_iter().collect(), begun.elapsed()))
}

/// Waits until an app has come up and sends it to zero.
async fn rest(cove: &Cove, app: &App) -> anyhow::Result<()> {
    cove.until_provisioned(&app.id).await?;
    cove.scale_to_zero(app).await
}

/// Every page of all apps of the group: their times and the number of apps.
async fn list(cove: &Cove) -> anyhow::Result<(Samples, usize)> {
    let mut times = Vec::new();
    let mut listed = 0;
    let mut next = Some(list_path());
    while let Some(path) = next {
        let begun = Instant::now();
        let page = cove.ask("GET", &path, None).await?;
        times.push(begun.elapsed());
        listed += page["value"].as_array().map_or(0, Vec::len);
        next = page["nextLink"]
            .as_str()
            .and_then(|link| link.split_once("/subscriptions/"))
            .map(|(_, rest)| format!("/subscriptions/{rest}"));
    }
    Ok((times.into_iter().collect(), listed))
}

fn report(machine: &str, args: &ApiArgs, found: &Figures) -> Outcome {
    let mib = |bytes: u64| (bytes * 10 / (1024 * 1024)) as f64 / 10.0;
    let mut text = format!("bench api on {machine}\n\n");
    text += "From the first byte sent to the last byte read, one request after the other over one TLS connection.\n\n";
    let mut line = |what: &str, samples: &Samples| {
        let _ = writeln!(text, "{what:<44} {samples}");
    };
    line("GET of an app:", &found.get);
    line("PUT of an app (checked, written, synced):", &found.put);
    let others = args.at_once - 1;
    line(&format!("PUT that makes an app, while {others} others come up:"), &found.create);
    line("GET of one of many apps:", &found.get_among);
    line("a page of the list of all apps:", &found.pages);
    let _ = writeln!(
        text,
        "\n{} apps were made, started once and at zero after {:.1} s; {} are listed\n\
         server with all of them at zero: RSS {:.1} MiB\n\
         kill -9 and start again: ready after {:.2} s, first GET {:.2} ms",
        args.apps,
        found.created_in.as_secs_f64(),
        found.listed,
        mib(found.rss),
        found.restart.as_secs_f64(),
        found.first_get.as_secs_f64() * 1e3,
    );
    let json = json!({
        "machine": machine, "apps": args.apps, "get": found.get.to_json(), "put": found.put.to_json(),
        "create": found.create.to_json(), "get_among": found.get_among.to_json(), "page": found.pages.to_json(),
        "created_seconds": found.created_in.as_secs_f64(), "rss_bytes": found.rss,
        "restart_seconds": found.restart.as_secs_f64(), "first_get_seconds": found.first_get.as_secs_f64(),
    });
    Outcome { text, json, is_clean: true }
}
