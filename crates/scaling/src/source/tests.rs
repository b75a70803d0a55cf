//! Scalers by table: metadata, an answer, what it comes to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn parse(scaler: &str, metadata: &[(&str, &str)]) -> Result<Option<Scaler>, MetadataError> {
    let metadata: BTreeMap<&str, &str> = metadata.iter().copied().collect();
    Scaler::parse(scaler, &|key| metadata.get(key).map(|value| (*value).to_owned()))
}

/// A scaler, its metadata, an answer.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Answer);

fn check(cases: &[Case<'_>], expected: &Expect) {
    let mut shown = String::new();
    for (scaler, metadata, answer) in cases {
        let result = match parse(scaler, metadata) {
            Ok(Some(scaler)) => match scaler.measure(answer) {
                Ok(Metric { value, active }) => format!("{value} of {:?}, active {active}", scaler.target()),
                Err(error) => format!("unreadable: {error}"),
            },
            Ok(None) => "no such scaler".to_owned(),
            Err(error) => format!("metadata: {error}"),
        };
        writeln!(shown, "{scaler}: {result}").unwrap();
    }
    expected.assert_eq(&shown);
}

#[test]
fn one_number() {
    let value: &[_] = &[("value", "5"), ("activationValue", "7")];
    check(
        &[
            ("redis", &[], Answer::Number(12.0)),
            ("redis-cluster", &[("listLength", " 2 ")], Answer::Number(0.0)),
            ("etcd", value, Answer::Number(number_of(" 7.5 ").unwrap())),
            ("beanstalkd", value, Answer::Number(tube_jobs(5, 3, true))),
            ("beanstalkd", value, Answer::Number(tube_jobs(5, 3, false))),
            ("postgresql", &[], Answer::Number(1.0)),
            ("mysql", &[("queryValue", "x")], Answer::Number(1.0)),
            ("mysql", &[("queryValue", "0"), ("activationQueryValue", "?")], Answer::Number(1.0)),
            ("azure-blob", &[("blobCount", "3")], Answer::Number(f64::NAN)),
            ("abacus", &[], Answer::Number(1.0)),
            ("redis", &[], Answer::ServiceBus(vec![1])),
        ],
        &expect![[r#"
            redis: 12 of Some(5.0), active true
            redis-cluster: 0 of Some(2.0), active false
            etcd: 7.5 of Some(5.0), active true
            beanstalkd: 8 of Some(5.0), active true
            beanstalkd: 5 of Some(5.0), active false
            postgresql: metadata: targetQueryValue is missing
            mysql: metadata: queryValue is `x`; expected a number of at least 0.001
            mysql: metadata: queryValue is `0`; expected a number of at least 0.001; activationQueryValue is `?`; expected a number
            azure-blob: unreadable: the source gave something that is no number
            abacus: no such scaler
            redis: unreadable: the answer is not of this scaler's source
        "#]],
    );
    assert!(number_of("many").is_err());
}

#[test]
fn rabbitmq_modes() {
    let queue = |messages, publish_rate, deliver_get_rate| {
        Answer::RabbitMq(vec![RabbitQueue { messages, ready: messages / 2, publish_rate, deliver_get_rate }])
    };
    let mode = |mode| [("mode", mode), ("value", "10"), ("activationValue", "2")];
    let [rate, get, ratio, time] =
        ["MessageRate", "DeliverGetRate", "PublishedToDeliveredRatio", "ExpectedQueueConsumptionTime"].map(mode);
    check(
        &[
            ("rabbitmq", &[], queue(9, 0.0, 0.0)),
            ("rabbitmq", &[("excludeUnacknowledged", "true"), ("protocol", "http")], queue(9, 0.0, 0.0)),
            ("rabbitmq", &rate, queue(3, 1.0, 0.0)),
            ("rabbitmq", &get, queue(3, 1.0, 2.5)),
            ("rabbitmq", &ratio, queue(0, 6.0, 2.0)),
            ("rabbitmq", &ratio, queue(0, 6.0, 0.0)),
            ("rabbitmq", &time, queue(20, 6.0, 2.0)),
            ("rabbitmq", &time, queue(20, 6.0, 0.0)),
            ("rabbitmq", &time, queue(0, 0.0, 0.0)),
            ("rabbitmq", &[("mode", "MessageRate"), ("protocol", "amqp")], queue(0, 0.0, 0.0)),
            ("rabbitmq", &[("mode", "Depth"), ("queueLength", "5"), ("value", "5")], queue(0, 0.0, 0.0)),
            (
                "rabbitmq",
                &[("operation", "avg"), ("useRegex", "true")],
                Answer::RabbitMq(vec![RabbitQueue { messages: 5, ..RabbitQueue::default() }, RabbitQueue::default()]),
            ),
            ("rabbitmq", &[("operation", "max")], Answer::RabbitMq(Vec::new())),
        ],
        &expect![[r#"
            rabbitmq: 9 of Some(20.0), active true
            rabbitmq: 4 of Some(20.0), active true
            rabbitmq: 1 of Some(10.0), active true
            rabbitmq: 2.5 of Some(10.0), active true
            rabbitmq: 3 of Some(10.0), active true
            rabbitmq: 2 of Some(10.0), active true
            rabbitmq: 12 of Some(10.0), active true
            rabbitmq: 2 of Some(10.0), active true
            rabbitmq: 0 of Some(10.0), active false
            rabbitmq: metadata: a mode needs a value; a mode other than QueueLength needs protocol http
            rabbitmq: metadata: mode is `Depth`; expected one of Unknown, QueueLength, MessageRate, DeliverGetRate, PublishedToDeliveredRatio, ExpectedQueueConsumptionTime; queueLength is the old form of mode QueueLength with a value; give one of the two
            rabbitmq: 2 of Some(20.0), active true
            rabbitmq: 0 of Some(20.0), active false
        "#]],
    );
}

#[test]
fn kafka_bounds_and_persistent_lag() {
    let partition = |end, committed, before| KafkaPartition { end, committed, committed_before: before };
    let stuck = || vec![partition(Some(50), Some(10), Some(10)), partition(Some(9), Some(4), Some(3))];
    let lags = || Answer::Kafka(vec![partition(Some(25), Some(0), None); 6]);
    check(
        &[
            ("kafka", &[("excludePersistentLag", "true")], Answer::Kafka(stuck())),
            ("kafka", &[("excludePersistentLag", "true")], Answer::Kafka(stuck()[..1].to_vec())),
            ("kafka", &[], Answer::Kafka(vec![partition(None, Some(4), None), partition(Some(2), Some(4), None)])),
            ("apache-kafka", &[], lags()),
            (
                "kafka",
                &[("ensureEvenDistributionOfPartitions", "true"), ("topic", "t"), ("lagThreshold", "40")],
                lags(),
            ),
            ("kafka", &[("limitToPartitionsWithLag", "true")], lags()),
            ("kafka", &[("limitToPartitionsWithLag", "true"), ("topic", "t"), ("allowIdleConsumers", "TRUE")], lags()),
            ("kafka", &[("lagThreshold", "0"), ("offsetResetPolicy", "newest")], lags()),
        ],
        &expect![[r#"
            kafka: 5 of Some(10.0), active true
            kafka: 0 of Some(10.0), active true
            kafka: 0 of Some(10.0), active false
            apache-kafka: 60 of Some(10.0), active true
            kafka: 240 of Some(40.0), active true
            kafka: metadata: limitToPartitionsWithLag needs a topic
            kafka: metadata: give either allowIdleConsumers or limitToPartitionsWithLag
            kafka: metadata: lagThreshold is `0`; expected a whole number of at least 1; offsetResetPolicy is `newest`; expected one of latest, earliest
        "#]],
    );
}

#[test]
fn event_hub_wraps_and_knows_stale_information() {
    let partition = |last, checkpoint, beginning| EventHubPartition { last, beginning, checkpoint };
    let hub = |partition| ("azure-eventhub", &[][..], Answer::EventHub(vec![partition]));
    check(
        &[
            hub(partition(5, Some(i64::MAX - 5), 0)),
            hub(partition(10, Some(12), 0)),
            hub(partition(0, None, 0)),
            hub(partition(7, None, 7)),
            hub(partition(7, Some(-1), 0)),
        ],
        &expect![[r#"
            azure-eventhub: 10 of Some(64.0), active true
            azure-eventhub: 0 of Some(64.0), active false
            azure-eventhub: 1 of Some(64.0), active true
            azure-eventhub: 0 of Some(64.0), active false
            azure-eventhub: 7 of Some(64.0), active true
        "#]],
    );
}

#[test]
fn streams_and_prometheus() {
    let group = |pending, lag| Some(StreamGroup { pending, lag });
    let lag: &[_] = &[("consumerGroup", "g"), ("lagCount", "4"), ("activationLagCount", "3")];
    let stream = |length, group| Answer::RedisStream(StreamAnswer { length, group });
    let strict: &[_] = &[("threshold", "2"), ("ignoreNullValues", "false")];
    check(
        &[
            ("redis-streams", &[], stream(Some(8), None)),
            ("redis-streams", lag, stream(Some(8), group(9, Some(3)))),
            ("redis-streams", lag, stream(Some(8), group(9, None))),
            ("redis-streams", lag, stream(None, None)),
            ("redis-sentinel-streams", &[("consumerGroup", "g")], stream(Some(8), None)),
            ("redis-streams", &[("lagCount", "4")], stream(Some(8), None)),
            ("prometheus", &[("threshold", "2")], Answer::Prometheus(vec![Some(f64::INFINITY)])),
            ("prometheus", strict, Answer::Prometheus(vec![Some(f64::NAN)])),
            ("prometheus", strict, Answer::Prometheus(vec![Some(3.5)])),
            ("prometheus", strict, Answer::Prometheus(vec![Some(1.0), Some(2.0)])),
            ("prometheus", &[], Answer::Prometheus(Vec::new())),
        ],
        &expect![[r#"
            redis-streams: 8 of Some(5.0), active true
            redis-streams: 3 of Some(4.0), active false
            redis-streams: unreadable: Redis cannot tell the lag; it needs Redis 7
            redis-streams: 0 of Some(4.0), active false
            redis-sentinel-streams: unreadable: there is no such stream or consumer group
            redis-streams: metadata: lagCount needs a consumerGroup
            prometheus: 0 of Some(2.0), active false
            prometheus: unreadable: the query gave an empty or infinite result
            prometheus: 3.5 of Some(2.0), active true
            prometheus: unreadable: the query gave 2 series; aggregate them to one
            prometheus: metadata: threshold is missing
        "#]],
    );
}

#[test]
fn documents() {
    let api = |format, place| [("targetValue", "5"), ("format", format), ("valueLocation", place)];
    let text = |text: &str| Answer::Document(Document::Text(text.to_owned()));
    let json = r#"{"a": {"b.c": [1, "2500m", {"n": -3}]}, "t": true}"#;
    let xml = "<?xml version=\"1.0\"?><!-- x --><r a='7'><q>1</q><q>4&#x35;</q><e/></r>";
    let exposition = "# TYPE q gauge\nq{name=\"a\",k=\"x\\\"y\"} 3\nq{name=\"b\"} 9 1700000000\nup 1\n";
    let deep = "<a>".repeat(100_000);
    check(
        &[
            ("metrics-api", &api("json", r"a.b\.c.1"), text(json)),
            ("metrics-api", &api("json", r"a.b\.c.#"), text(json)),
            ("metrics-api", &api("json", r"a.b\.c.2.n"), text(json)),
            ("metrics-api", &api("json", "t"), text(json)),
            ("metrics-api", &api("json", "a.x"), text(json)),
            ("metrics-api", &api("json", "a"), text("<html>")),
            ("metrics-api", &api("xml", "r.q.1"), text(xml)),
            ("metrics-api", &api("xml", "r.-a"), text(xml)),
            ("metrics-api", &api("xml", "r.q"), text("<r><q>1</r>")),
            ("metrics-api", &api("xml", "a"), text(&deep)),
            ("metrics-api", &api("prometheus", "q{name=\"b\"}"), text(exposition)),
            ("metrics-api", &api("prometheus", "q{k=\"x\\\"y\"}"), text(exposition)),
            ("metrics-api", &api("prometheus", "up"), text(exposition)),
            ("metrics-api", &api("prometheus", "q{name=~\"b\"}"), text(exposition)),
            ("metrics-api", &api("yaml", "a.0"), Answer::Document(Document::Tree(json!({"a": ["1Ki"]})))),
            ("metrics-api", &[("format", "csv"), ("activationTargetValue", "z")], text("")),
        ],
        &expect![[r#"
            metrics-api: 2.5 of Some(5.0), active true
            metrics-api: 3 of Some(5.0), active true
            metrics-api: -3 of Some(5.0), active false
            metrics-api: unreadable: what is at `t` is no number: true
            metrics-api: unreadable: there is nothing at `a.x`
            metrics-api: unreadable: the document is no JSON: expected value at line 1 column 1
            metrics-api: 45 of Some(5.0), active true
            metrics-api: 7 of Some(5.0), active true
            metrics-api: unreadable: the document is no XML: tags do not match
            metrics-api: unreadable: the document is no XML: it is nested too deep
            metrics-api: 9 of Some(5.0), active true
            metrics-api: 3 of Some(5.0), active true
            metrics-api: 1 of Some(5.0), active true
            metrics-api: unreadable: `q{name=~"b"}` is no metric such as `name{label="value"}`
            metrics-api: 1024 of Some(5.0), active true
            metrics-api: metadata: targetValue is missing; activationTargetValue is `z`; expected a number; format is `csv`; expected one of json, xml, yaml, prometheus; valueLocation is missing
        "#]],
    );
}

#[test]
fn runners() {
    let job = |status: &str, labels: &[&str]| GithubJob {
        status: status.into(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
    };
    let jobs = vec![job("queued", &["self-hosted", "GPU"]), job("queued", &[]), job("in_progress", &["gpu"])];
    let none: &[_] = &[("noDefaultLabels", "true"), ("matchUnlabeledJobsWithUnlabeledRunners", "true")];
    let pipeline = |demands: &[&str]| PipelineJob {
        is_finished: false,
        demands: demands.iter().map(|demand| (*demand).to_owned()).collect(),
        matched_agents: vec!["parent".to_owned()],
    };
    let finished = PipelineJob { is_finished: true, ..PipelineJob::default() };
    let requests = || {
        Answer::PipelineJobs(vec![
            pipeline(&["Agent.Version -gtVersion 2.1", "docker"]),
            pipeline(&["docker", "gpu"]),
            finished.clone(),
        ])
    };
    check(
        &[
            ("github-runner", &[("labels", "gpu, arm")], Answer::GithubJobs(jobs.clone())),
            ("github-runner", none, Answer::GithubJobs(jobs)),
            ("azure-pipelines", &[("poolID", "1")], requests()),
            ("azure-pipelines", &[("poolID", "1"), ("demands", "docker")], requests()),
            (
                "azure-pipelines",
                &[("poolID", "1"), ("demands", "docker,gpu"), ("requireAllDemands", "true")],
                requests(),
            ),
            (
                "azure-pipelines",
                &[("poolName", "p"), ("demands", "docker"), ("requireAllDemandsAndIgnoreOthers", "true")],
                requests(),
            ),
            ("azure-pipelines", &[("poolID", "1"), ("parent", "parent")], requests()),
            ("azure-pipelines", &[], requests()),
        ],
        &expect![[r#"
            github-runner: 2 of Some(1.0), active true
            github-runner: 1 of Some(1.0), active true
            azure-pipelines: 2 of Some(1.0), active true
            azure-pipelines: 1 of Some(1.0), active true
            azure-pipelines: 1 of Some(1.0), active true
            azure-pipelines: 2 of Some(1.0), active true
            azure-pipelines: 2 of Some(1.0), active true
            azure-pipelines: metadata: give either poolName or poolID
        "#]],
    );
}

#[test]
fn calendars() {
    let zone = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let mut shown = String::new();
    for (schedule, now) in [
        ("30 6 * * *", "2026-11-22T05:29:59Z"),
        ("30 6 * * *", "2026-11-22T05:30:00Z"),
        ("*/20 8-17 * * mon-fri", "2026-11-20T16:45:00Z"),
        ("0 0 29 feb *", "2026-01-01T00:00:00Z"),
        ("0 12 13 * 5", "2026-11-22T00:00:00Z"),
        ("30 2 * * *", "2026-03-29T00:00:00Z"),
        ("0 0 * * 7", "2026-11-22T00:00:00Z"),
    ] {
        let next = crate::schedule::Calendar::parse(schedule).unwrap().next_after(at(now), &zone);
        writeln!(shown, "{schedule} after {now}: {next:?}").unwrap();
    }
    for wrong in ["", "60 * * * *", "* * * *", "5-1 * * * *", "*/0 * * * *", "a * * * *", "0 0 30 2 *"] {
        writeln!(shown, "{wrong}: {}", crate::schedule::Calendar::parse(wrong).unwrap_err()).unwrap();
    }
    expect![[r#"
        30 6 * * * after 2026-11-22T05:29:59Z: Some(2026-11-22T05:30:00Z)
        30 6 * * * after 2026-11-22T05:30:00Z: Some(2026-11-23T05:30:00Z)
        */20 8-17 * * mon-fri after 2026-11-20T16:45:00Z: Some(2026-11-23T07:00:00Z)
        0 0 29 feb * after 2026-01-01T00:00:00Z: Some(2028-02-28T23:00:00Z)
        0 12 13 * 5 after 2026-11-22T00:00:00Z: Some(2026-11-27T11:00:00Z)
        30 2 * * * after 2026-03-29T00:00:00Z: Some(2026-03-29T01:00:00Z)
        0 0 * * 7 after 2026-11-22T00:00:00Z: Some(2026-11-28T23:00:00Z)
        : expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before them, found 0
        60 * * * *: minute is `60`; expected `*`, or 0 to 59, with `-` for ranges, `/` for steps, `,` between them
        * * * *: expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before them, found 4
        5-1 * * * *: minute is `5-1`, which goes backwards; write `5-59,0-1`
        */0 * * * *: minute is `*/0`, whose step is `0`; write a whole number from 1 up
        a * * * *: minute is `a`; expected `*`, or 0 to 59, with `-` for ranges, `/` for steps, `,` between them
        0 0 30 2 *: it never comes: none of its months has one of its days
    "#]]
    .assert_eq(&shown);
    let office: &[_] =
        &[("start", "0 8 * * *"), ("end", "0 18 * * *"), ("timezone", "Europe/Prague"), ("desiredReplicas", "4")];
    check(
        &[
            ("cron", office, Answer::Clock(at("2026-11-22T07:00:00Z"), zone.clone())),
            ("cron", office, Answer::Clock(at("2026-11-22T17:00:00Z"), zone.clone())),
            ("cron", &[("start", "x"), ("end", "0 18 * * *")], Answer::Clock(at("2026-11-22T07:00:00Z"), zone)),
        ],
        &expect![[r#"
            cron: 4 of Some(1.0), active true
            cron: 0 of Some(1.0), active false
            cron: metadata: start is `x`: expected 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds before them, found 1; desiredReplicas is missing; timezone is missing
        "#]],
    );
}
