//! `cove scale simulate` and `cove scale suggest`: rules tried out on what was recorded or on a trace.
//!
//! With an app, its recorded readings are decided again, exactly, under its own rules and under others; the requests
//! behind them are an estimate. With a trace there is no server in it at all.
//!
//! **Invariant:** what cannot be replayed exactly is said beside the numbers.

use std::path::PathBuf;

use cove_scaling::{
    Decision, ScaleConfig, ScaleDefaults,
    simulate::{
        Fleet, Objective, Outcome, Policy, RateCard, Recorded, Replayed, ReplicaSize, Request, Suggestion, clairvoyant,
        parse_csv, rebuild, replay, simulate, state_before, suggest,
    },
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    list, moment,
    plot::{self, Line},
    rules::{self, Rules},
};
use crate::{
    client::{Client, encode},
    failure::Failure,
    file,
    output::Table,
    session::Session,
    text, wakes,
};

/// Decisions asked for at once.
const PAGE: usize = 5000;
/// Decisions that a replay takes at most.
const REPLAYED_MAX: usize = 200_000;
/// How long before `--from` decisions are read, so that windows are known.
const BEFORE: SignedDuration = SignedDuration::from_hours(1);
/// Suggestions shown.
const SHOWN: usize = 5;

/// On what rules are tried.
#[derive(Debug, clap::Args)]
pub(crate) struct OnArgs {
    /// Name or id of the app whose recorded readings are replayed.
    #[arg(long, required_unless_present = "trace", conflicts_with = "trace")]
    app: Option<String>,
    /// Resource group of the app.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    group: Option<String>,
    /// Revision; default the one with the most decisions in the time asked for.
    #[arg(long, requires = "app")]
    revision: Option<String>,
    /// Begin: `2026-05-01T12:00:00Z`, `12:00` (UTC, the last one), or `2h` (ago). Default 1h.
    #[arg(long, default_value = "1h")]
    from: String,
    /// End, written as the begin. Default now.
    #[arg(long, default_value = "0s")]
    to: String,
    /// CSV of `arrival,duration` in seconds; needs no server.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Time until a replica is ready, of requests. Default: the median wake of the app, 2s with a trace.
    #[arg(long)]
    cold_start: Option<String>,
    /// Requests that a replica works on at once. Default 10.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    slots: u32,
    /// A longer wait is a violation. Default 1s.
    #[arg(long, default_value = "1s")]
    wait_limit: String,
    /// Cores of a replica. Default the app's, 0.5 with a trace.
    #[arg(long)]
    cpu: Option<f64>,
    /// GiB of a replica. Default the app's, 1 with a trace.
    #[arg(long)]
    memory: Option<f64>,
    /// YAML with own prices: vcpuSecond, idleVcpuSecond, gibSecond, millionRequests. Default Azure's consumption plan, USD.
    #[arg(long)]
    prices: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    on: OnArgs,
    /// YAML of a `scale` section in ACA's shape; may be given several times.
    #[arg(long, required = true)]
    rules: Vec<PathBuf>,
    /// Writes the plot as SVG.
    #[arg(long)]
    svg: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SuggestArgs {
    #[command(flatten)]
    on: OnArgs,
    /// YAML of the `scale` section to begin with. Default the app's; Azure's default rule with a trace.
    #[arg(long)]
    rules: Option<PathBuf>,
    /// `waits:0.5`: the cheapest with at most 0.5 % of waits over the limit; `cost:0.10`: the fewest waits for that much.
    #[arg(long, default_value = "waits:0.5")]
    objective: String,
}

impl SimulateArgs {
    pub(super) fn on(&self) -> &OnArgs {
        &self.on
    }
}

impl SuggestArgs {
    pub(super) fn on(&self) -> &OnArgs {
        &self.on
    }
}

/// What is tried on.
struct Ground {
    /// Rules in force today, as far as there are any.
    today: Option<Rules>,
    decisions: Vec<Decision>,
    before: Vec<Decision>,
    recorded_config: Option<ScaleConfig>,
    trace: Option<Vec<Request>>,
    fleet: Fleet,
    size: ReplicaSize,
    card: RateCard,
    app: Option<Value>,
}

impl Ground {
    fn until_ms(&self) -> u64 {
        let last =
            self.trace.as_ref().and_then(|trace| trace.iter().map(|request| request.at_ms + request.duration_ms).max());
        let span = self.decisions.first().zip(self.decisions.last());
        let span = span.and_then(|(first, last)| u64::try_from(last.at.duration_since(first.at).as_millis()).ok());
        span.or(last).unwrap_or(0)
    }
}

fn millis(text: &str, flag: &str) -> Result<u64, Failure> {
    let parsed = cove_base::parse_duration(text).and_then(|span| u64::try_from(span.as_millis()).ok());
    parsed.ok_or_else(|| Failure::usage(format!("{flag} is `{text}`; write `800ms`, `2s` or `1m`")))
}

impl OnArgs {
    pub(super) fn needs_server(&self) -> bool {
        self.app.is_some()
    }

    fn prices(&self) -> Result<RateCard, Failure> {
        let Some(path) = &self.prices else { return Ok(RateCard::default()) };
        serde_json::from_value(file::yaml(path)?)
            .map_err(|error| Failure::new(format!("`{}`: {error}", path.display())))
    }

    async fn ground(&self, session: Option<&Session>) -> Result<Ground, Failure> {
        let fleet = Fleet {
            cold_start_ms: self.cold_start.as_deref().map_or(Ok(2000), |text| millis(text, "--cold-start"))?,
            slots: self.slots,
            wait_limit_ms: millis(&self.wait_limit, "--wait-limit")?,
        };
        let size = ReplicaSize { vcpu: self.cpu.unwrap_or(0.5), gib: self.memory.unwrap_or(1.0) };
        let mut ground = Ground {
            today: None,
            decisions: Vec::new(),
            before: Vec::new(),
            recorded_config: None,
            trace: None,
            fleet,
            size,
            card: self.prices()?,
            app: None,
        };
        if let Some(path) = &self.trace {
            let trace = parse_csv(&file::text(path)?)
                .map_err(|error| Failure::new(format!("`{}`: {error}", path.display())))?;
            ground.trace = Some(trace);
        }
        if let (Some(name), Some(session)) = (&self.app, session) {
            self.recorded(name, &session.client, &mut ground).await?;
        }
        Ok(ground)
    }

    async fn recorded(&self, name: &str, client: &Client, ground: &mut Ground) -> Result<(), Failure> {
        let id = wakes::find_app(client, name, self.group.as_deref()).await?;
        let app = client.get(&id).await?;
        let now = super::server_now(client).await?;
        let (from, to) = (moment(&self.from, now)?, moment(&self.to, now)?);
        let begin = from.saturating_sub(BEFORE).unwrap_or(Timestamp::MIN);
        let mut spans = fetch(client, &id, self.revision.as_deref(), begin, to).await?;
        spans.sort_by_key(|found| found.decisions.iter().filter(|decision| decision.at >= from).count());
        let Some(found) = spans.pop().filter(|found| found.decisions.iter().any(|decision| decision.at >= from)) else {
            return Err(Failure::new(format!("nothing was decided for `{name}` from {from} to {to}"))
                .hint("an app that sleeps at zero takes no decisions; `cove scale explain` shows what was recorded"));
        };
        if spans.iter().any(|other| !other.decisions.is_empty()) {
            text::note(&format!("Replaying revision {}; --revision chooses another", found.revision));
        }
        if found.is_mixed {
            text::note("The rules of this revision changed in that time; readings are taken together by rule name");
        }
        (ground.before, ground.decisions) = found.decisions.into_iter().partition(|decision| decision.at < from);
        ground.today = Some(rules::of_app(&app)?);
        ground.recorded_config = Some(found.config);
        let container = |field: &str| -> f64 {
            let all = app.pointer("/properties/template/containers").map_or(&[][..], list);
            all.iter().filter_map(|container| number(container.pointer(&format!("/resources/{field}"))?)).sum()
        };
        ground.size = ReplicaSize {
            vcpu: self.cpu.unwrap_or_else(|| container("cpu")),
            gib: self.memory.unwrap_or_else(|| container("memory")),
        };
        if self.cold_start.is_none()
            && let Some(median) = median_wake_ms(client, &id).await?
        {
            ground.fleet.cold_start_ms = median;
        }
        ground.app = Some(app);
        Ok(())
    }
}

/// `0.5`, `"1Gi"`, `"1.5Gi"`.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim_end_matches("Gi").parse().ok())
}

async fn median_wake_ms(client: &Client, app: &str) -> Result<Option<u64>, Failure> {
    let found = wakes::fetch(client, Some(app), 100).await?;
    let mut ready: Vec<u64> = list(&found)
        .iter()
        .filter_map(|wake| wake["ready_us"].as_u64().or_else(|| wake["first_byte_us"].as_u64()))
        .collect();
    ready.sort_unstable();
    Ok(ready.get(ready.len() / 2).map(|us| us.div_ceil(1000)))
}

struct Found {
    revision: String,
    config: ScaleConfig,
    decisions: Vec<Decision>,
    is_mixed: bool,
}

/// All decisions of a span, page by page, per revision.
async fn fetch(
    client: &Client,
    app: &str,
    revision: Option<&str>,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Found>, Failure> {
    let mut all: Vec<Found> = Vec::new();
    let mut open: Vec<(Option<String>, Timestamp)> = vec![(revision.map(str::to_owned), from)];
    while let Some((revision, begin)) = open.pop() {
        let only = revision.as_deref().map(|name| format!("&revision={}", encode(name))).unwrap_or_default();
        let path = format!(
            "/cove/v1/scale/decisions?app={}{only}&from={}&to={}&limit={PAGE}",
            encode(app),
            encode(&begin.to_string()),
            encode(&to.to_string())
        );
        let answer = client.get(&path).await?;
        for part in list(&answer["value"]) {
            let name = part["revision"].as_str().unwrap_or_default();
            for span in list(&part["spans"]) {
                take_span(&mut all, name, span)?;
            }
            let last = all.iter().find(|found| found.revision == name).and_then(|found| found.decisions.last());
            if let (true, Some(last)) = (part["isCut"] == true, last) {
                let next = last.at.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MAX);
                open.push((Some(name.to_owned()), next));
            }
        }
        if all.iter().map(|found| found.decisions.len()).sum::<usize>() > REPLAYED_MAX {
            return Err(Failure::new(format!("more than {REPLAYED_MAX} decisions; ask for a shorter time")));
        }
    }
    Ok(all)
}

fn take_span(all: &mut Vec<Found>, revision: &str, span: &Value) -> Result<(), Failure> {
    let unread = |error: serde_json::Error| Failure::new(format!("the server's decisions cannot be read: {error}"));
    let config: ScaleConfig = serde_json::from_value(span["config"].clone()).map_err(unread)?;
    let decisions: Vec<Decision> = serde_json::from_value(span["decisions"].clone()).map_err(unread)?;
    match all.iter_mut().find(|found| found.revision == revision) {
        Some(found) => {
            found.is_mixed |= found.config != config;
            found.config = config;
            found.decisions.extend(decisions);
        }
        None => all.push(Found { revision: revision.to_owned(), config, decisions, is_mixed: false }),
    }
    Ok(())
}

pub(crate) async fn simulate_rules(args: &SimulateArgs, session: Option<&Session>) -> Result<(), Failure> {
    let ground = args.on.ground(session).await?;
    let given: Result<Vec<Rules>, Failure> =
        args.rules.iter().map(|path| rules::read(path, ground.app.as_ref())).collect();
    let mut all = given?;
    let first = match &ground.today {
        Some(today) => Some(today.clone()),
        None => (all.len() == 1).then(rules::default_rules),
    };
    all.splice(0..0, first);
    let mut lines = Vec::new();
    let mut shown = String::new();
    let mut result = json!({});
    if let Some(config) = &ground.recorded_config {
        let (text, value) = replayed(&ground, config, &all, &mut lines);
        shown.push_str(&text);
        result["replay"] = value;
    }
    let estimated = match &ground.trace {
        Some(trace) => Some(trace.clone()),
        None => ground.recorded_config.as_ref().and_then(|config| rebuild(config, &Recorded::of(&ground.decisions))),
    };
    if let Some(trace) = estimated.filter(|trace| !trace.is_empty()) {
        let (text, value) = on_requests(&ground, &trace, &all, &mut lines);
        shown.push_str(&text);
        result["requests"] = value;
    }
    let until_ms = ground.until_ms();
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&lines, until_ms))
            .map_err(|error| Failure::new(format!("failed to write `{}`: {error}", path.display())))?;
    }
    if let Some(session) = session.filter(|session| !session.output.is_table()) {
        return session.print(result, crate::output::View::Plain);
    }
    text::out(&shown);
    let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
    text::out(&plot::terminal(&lines, until_ms, width));
    Ok(())
}

/// What was recorded, and the same readings under each set of rules.
fn replayed(ground: &Ground, config: &ScaleConfig, all: &[Rules], lines: &mut Vec<Line>) -> (String, Value) {
    let (Some(first), Some(today)) = (ground.decisions.first(), &ground.today) else { return Default::default() };
    let state = state_before(&ground.before, config, first);
    let recorded = Recorded::of(&ground.decisions);
    let again = replay(config, state.clone(), &recorded);
    let differing =
        again.decisions.iter().zip(&ground.decisions).filter(|(a, b)| (a.new, a.at) != (b.new, b.at)).count()
            + again.decisions.len().abs_diff(ground.decisions.len());
    let mut columns = vec![("recorded".to_owned(), again)];
    let free = Recorded::with_sleep(&recorded, config);
    let free: Vec<Recorded> = free.into_iter().map(|tick| Recorded { existing: None, ..tick }).collect();
    let mut notes = Vec::new();
    for rules in all.iter().skip(1) {
        let config = Policy::of(&rules.scale, rules.has_ingress, &ScaleDefaults::default()).config;
        columns.push((rules.name.clone(), replay(&config, state.clone(), &free)));
        notes.extend(rules::caveats(today, rules).into_iter().map(|note| format!("{}: {note}", rules.name)));
    }
    let requests = rebuild(config, &recorded).map_or(0, |trace| trace.len());
    let requests = u64::try_from(requests).unwrap_or(0);
    let cost = |replayed: &Replayed| ground.card.cost(ground.size, replayed.replica_ms, replayed.idle_ms, requests);
    let mut table =
        Table::new(["Readings replayed".to_owned()].into_iter().chain(columns.iter().map(|(name, _)| name.clone())));
    let mut row = |title: &str, cell: &dyn Fn(&Replayed) -> String| {
        table.row([title.to_owned()].into_iter().chain(columns.iter().map(|(_, replayed)| cell(replayed))));
    };
    row("decisions", &|replayed| replayed.decisions.len().to_string());
    row("replica-seconds", &|replayed| (replayed.replica_ms / 1000).to_string());
    row("cost", &|replayed| format!("{:.6}", cost(replayed)));
    row("replicas started", &|replayed| replayed.starts.to_string());
    row("most replicas", &|replayed| most(&replayed.decisions).to_string());
    let mut text = table.render();
    text.push_str(&match differing {
        0 => "replaying today's rules gives every recorded decision again\n".to_owned(),
        count => format!("replaying today's rules differs from {count} recorded decisions\n"),
    });
    notes.iter().for_each(|note| text.push_str(&format!("not exact: {note}\n")));
    text.push('\n');
    lines.extend(columns.iter().map(|(name, replayed)| line(name, first.at, &replayed.decisions)));
    let value: Vec<Value> = columns
        .iter()
        .map(|(name, replayed)| {
            json!({"rules": name, "decisions": replayed.decisions.len(), "replicaSeconds": replayed.replica_ms / 1000,
                "cost": cost(replayed), "starts": replayed.starts, "mostReplicas": most(&replayed.decisions)})
        })
        .collect();
    (text, json!({"columns": value, "differing": differing, "notExact": notes}))
}

fn most(decisions: &[Decision]) -> u32 {
    decisions.iter().map(|decision| decision.new).max().unwrap_or(0)
}

fn line(name: &str, first: Timestamp, decisions: &[Decision]) -> Line {
    let at_ms = |decision: &Decision| u64::try_from(decision.at.duration_since(first).as_millis()).unwrap_or(0);
    Line { name: name.to_owned(), steps: decisions.iter().map(|decision| (at_ms(decision), decision.new)).collect() }
}

/// Requests, given or estimated, under each set of rules.
fn on_requests(ground: &Ground, trace: &[Request], all: &[Rules], lines: &mut Vec<Line>) -> (String, Value) {
    let until_ms = ground.until_ms();
    let mut columns: Vec<(String, Outcome)> = Vec::new();
    for rules in all {
        let policy = Policy::of(&rules.scale, rules.has_ingress, &ScaleDefaults::default());
        let outcome = simulate(&policy, trace, &ground.fleet, until_ms);
        if ground.trace.is_some() {
            lines.push(Line { name: rules.name.clone(), steps: outcome.counts.clone() });
        }
        columns.push((rules.name.clone(), outcome));
    }
    columns.push(("bound".to_owned(), clairvoyant(trace, &ground.fleet)));
    let title = if ground.trace.is_some() { "Requests" } else { "Requests, estimated" };
    let mut text = outcome_table(title, &columns, ground);
    text.push_str(&format!(
        "a replica starts in {} ms, works on {} requests at once and costs {} cores and {} GiB; bound: who knows the future\n\n",
        ground.fleet.cold_start_ms, ground.fleet.slots, ground.size.vcpu, ground.size.gib
    ));
    let value: Vec<Value> = columns
        .iter()
        .map(|(name, outcome)| {
            json!({"rules": name, "requests": outcome.requests, "replicaSeconds": outcome.replica_seconds(),
                "cost": outcome.cost(&ground.card, ground.size), "waitsOverLimitPercent": outcome.violation_percent(),
                "waitMs": outcome.wait_ms, "coldRequests": outcome.cold_requests, "starts": outcome.starts,
                "mostReplicas": outcome.most_replicas, "reversals": outcome.reversals})
        })
        .collect();
    (text, json!({"isEstimate": ground.trace.is_none(), "columns": value}))
}

fn outcome_table(title: &str, columns: &[(String, Outcome)], ground: &Ground) -> String {
    let mut table = Table::new([title.to_owned()].into_iter().chain(columns.iter().map(|(name, _)| name.clone())));
    let mut row = |title: &str, cell: &dyn Fn(&Outcome) -> String| {
        table.row([title.to_owned()].into_iter().chain(columns.iter().map(|(_, outcome)| cell(outcome))));
    };
    row("requests", &|outcome| outcome.requests.to_string());
    row("replica-seconds", &|outcome| format!("{:.0}", outcome.replica_seconds()));
    row("cost", &|outcome| format!("{:.6}", outcome.cost(&ground.card, ground.size)));
    let limit = format!("waits over {} ms", ground.fleet.wait_limit_ms);
    row(&limit, &|outcome| format!("{:.2} %", outcome.violation_percent()));
    row("wait p50, p95, p99 ms", &|outcome| {
        format!("{}, {}, {}", outcome.wait_ms.p50, outcome.wait_ms.p95, outcome.wait_ms.p99)
    });
    row("longest wait ms", &|outcome| outcome.wait_ms.max.to_string());
    row("cold requests", &|outcome| outcome.cold_requests.to_string());
    row("replicas started", &|outcome| outcome.starts.to_string());
    row("most replicas", &|outcome| outcome.most_replicas.to_string());
    table.render()
}

pub(crate) async fn suggest_rules(args: &SuggestArgs, session: Option<&Session>) -> Result<(), Failure> {
    let objective = objective(&args.objective)?;
    let ground = args.on.ground(session).await?;
    let today = match (&args.rules, &ground.today) {
        (Some(path), _) => rules::read(path, ground.app.as_ref())?,
        (None, Some(today)) => today.clone(),
        (None, None) => rules::default_rules(),
    };
    let trace = match &ground.trace {
        Some(trace) => trace.clone(),
        None => {
            let made =
                ground.recorded_config.as_ref().and_then(|config| rebuild(config, &Recorded::of(&ground.decisions)));
            made.filter(|trace| !trace.is_empty()).ok_or_else(|| {
                Failure::new("no request was recorded in that time that a search could begin from")
                    .hint("a search needs arrivals that an http or tcp rule in the mode aca read, or --trace FILE")
            })?
        }
    };
    let policy = Policy::of(&today.scale, today.has_ingress, &ScaleDefaults::default());
    let until_ms = ground.until_ms();
    let before = simulate(&policy, &trace, &ground.fleet, until_ms);
    let found = suggest(&policy, &trace, &ground.fleet, until_ms, (&ground.card, ground.size), objective, SHOWN);
    let mut columns = vec![(today.name, before)];
    let mut sections = String::new();
    for (number, suggestion) in (1..).zip(&found) {
        columns.push((format!("#{number}"), suggestion.outcome.clone()));
        sections.push_str(&format!("#{number}: {}\n", in_words(suggestion)));
    }
    if let Some(session) = session.filter(|session| !session.output.is_table()) {
        let value: Vec<Value> = found
            .iter()
            .map(|found| json!({"scale": in_words(found), "cost": found.cost, "outcome": found.outcome}))
            .collect();
        return session.print(value.into(), crate::output::View::Plain);
    }
    text::out(&outcome_table("Requests", &columns, &ground));
    text::out(&format!("\n{sections}"));
    Ok(())
}

fn objective(text: &str) -> Result<Objective, Failure> {
    let (kind, value) = text.split_once(':').unwrap_or((text, ""));
    let value = value.trim_end_matches('%').trim().parse::<f64>().ok().filter(|value| *value >= 0.0);
    match (kind, value) {
        ("waits", Some(percent)) => Ok(Objective::Waits(percent)),
        ("cost", Some(cost)) => Ok(Objective::Cost(cost)),
        _ => Err(Failure::usage(format!("--objective is `{text}`; write `waits:0.5` (percent) or `cost:0.10`"))),
    }
}

/// The properties of a `scale` section that make this policy.
fn in_words(suggestion: &Suggestion) -> String {
    let policy = &suggestion.policy;
    let (config, settings) = (&policy.config, &policy.config.settings);
    let targets = config.rules.iter().filter(|rule| rule.kind.is_load());
    let targets: Vec<String> = targets.map(|rule| format!("{} {}", rule.name, rule.target_milli / 1000)).collect();
    let mode = if policy.mode == cove_model::ScaleMode::Fast { "fast" } else { "aca" };
    let mut text = format!(
        "coveMode {mode}, minReplicas {}, maxReplicas {}, {}, cooldownPeriod {}, coveSettings.scaleDownWindowSeconds {}",
        config.min_replicas,
        config.max_replicas,
        targets.join(", "),
        settings.cooldown_period.as_secs(),
        settings.scale_down_window.as_secs()
    );
    if mode == "fast" {
        text.push_str(&format!(", coveSettings.headroomPercent {}", policy.fast.headroom_percent));
    }
    text
}
