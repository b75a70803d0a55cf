//! Each row against a stub: what it asks, and what its answer comes to.

use crate::http::stub::{Stub, measured, reply, trigger};

/// One row: parameters with `{}` for the stub's address, the answer, what is asked, and what it comes to.
struct Case {
    scaler: &'static str,
    parameters: &'static [(&'static str, &'static str)],
    answer: &'static str,
    /// Method and target.
    asked: &'static str,
    /// A header and its value.
    header: (&'static str, &'static str),
    /// The body.
    body: &'static str,
    value: Result<(f64, bool), &'static str>,
}

const BASIC: (&str, &str) = ("authorization", "Basic dTpw");
const LOGIN: (&str, &str) = ("username", "u");
const PASSWORD: (&str, &str) = ("password", "p");
const NONE: (&str, &str) = ("x-none", "");

async fn check(case: Case) {
    let stub = Stub::giving(200, case.answer).await;
    let host = format!("127.0.0.1:{}", stub.port);
    let parameters: Vec<(&str, String)> =
        case.parameters.iter().map(|(key, value)| (*key, value.replace("{}", &host))).collect();
    let parameters: Vec<(&str, &str)> = parameters.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let got = measured(&trigger(case.scaler, &parameters)).await;
    match (&got, &case.value) {
        (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{}", case.scaler),
        (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{}: {got}", case.scaler),
        _ => panic!("{}: {got:?}, expected {:?}", case.scaler, case.value),
    }
    let seen = stub.last();
    assert_eq!(format!("{} {}", seen.method, seen.target), case.asked, "{}", case.scaler);
    assert_eq!(seen.header(case.header.0), case.header.1, "{}", case.scaler);
    assert_eq!(seen.body, case.body, "{}", case.scaler);
}

#[tokio::test]
async fn brokers() {
    const QUEUE: &[(&str, &str)] = &[
        ("managementEndpoint", "{}"),
        ("brokerName", "b"),
        ("brokerAddress", "a"),
        ("queueName", "q"),
        ("destinationName", "q"),
        LOGIN,
        PASSWORD,
    ];
    const ACTIVEMQ: &str = "GET /api/jolokia/read/org.apache.activemq:type=Broker,brokerName=b,\
                            destinationType=Queue,destinationName=q/QueueSize";
    const ARTEMIS: &str = "GET /console/jolokia/read/org.apache.activemq.artemis:broker=%22b%22,component=addresses,\
                           address=%22a%22,subcomponent=queues,routing-type=%22anycast%22,queue=%22q%22/MessageCount";
    const STATS: &str = r#"{"subscriptions":{"s":{"msgBacklog":8}}}"#;
    let jolokia = |scaler, asked, answer, value| Case {
        scaler,
        parameters: QUEUE,
        answer,
        asked,
        header: BASIC,
        body: "",
        value,
    };
    check(jolokia("activemq", ACTIVEMQ, r#"{"value":12,"status":200}"#, Ok((12.0, true)))).await;
    check(jolokia("activemq", ACTIVEMQ, r#"{"error":"x","status":404}"#, Err("answered status 404"))).await;
    // Its activation is 10 by default.
    check(jolokia("artemis-queue", ARTEMIS, r#"{"value":10,"status":200}"#, Ok((10.0, false)))).await;
    let pulsar = |parameters, asked, value| Case {
        scaler: "pulsar",
        parameters,
        answer: STATS,
        asked,
        header: ("x-pulsar-auth-method-name", "token"),
        body: "",
        value,
    };
    let parameters = &[
        ("adminURL", "http://{}"),
        ("topic", "persistent://t/n/x"),
        ("subscription", "s"),
        ("authModes", "bearer"),
        ("bearerToken", "t"),
    ];
    check(pulsar(parameters, "GET /admin/v2/persistent/t/n/x/stats", Ok((8.0, true)))).await;
    let parameters = &[
        ("adminURL", "http://{}/"),
        ("topic", "t/n/x"),
        ("subscription", "other"),
        ("isPartitionedTopic", "true"),
        ("authModes", "bearer"),
        ("bearerToken", "t"),
    ];
    let asked = "GET /admin/v2/persistent/t/n/x/partitioned-stats";
    check(pulsar(parameters, asked, Err("has no subscription `other`"))).await;
}

#[tokio::test]
async fn searches() {
    const SEARCH: &[(&str, &str)] = &[
        ("addresses", "http://{},http://127.0.0.1:1"),
        ("index", "a;b"),
        ("query", r#"{"size": 0}"#),
        ("valueLocation", "hits.total.value"),
        ("targetValue", "5"),
        ("apiKey", "k"),
    ];
    check(Case {
        scaler: "elasticsearch",
        parameters: SEARCH,
        answer: r#"{"hits":{"total":{"value":6}}}"#,
        asked: "POST /a,b/_search",
        header: ("authorization", "ApiKey k"),
        body: r#"{"size":0}"#,
        value: Ok((6.0, true)),
    })
    .await;
    let template = |ignore, value| Case {
        scaler: "opensearch",
        parameters: ignore,
        answer: r#"{"a":{"b":null}}"#,
        asked: "POST /a/_search/template",
        header: BASIC,
        body: r#"{"id":"t","params":{"x":"1","y":"two"}}"#,
        value,
    };
    const ALL: [(&str, &str); 9] = [
        ("addresses", "http://{}"),
        ("index", "a"),
        ("searchTemplateName", "t"),
        ("parameters", "x:1; y:two"),
        ("valueLocation", "a.b"),
        ("targetValue", "5"),
        LOGIN,
        PASSWORD,
        ("ignoreNullValues", "true"),
    ];
    check(template(&ALL, Ok((0.0, false)))).await;
    check(template(ALL.split_last().map_or(&[], |(_, first)| first), Err("gave no number"))).await;
    check(Case {
        scaler: "solr",
        parameters: &[("host", "http://{}"), ("collection", "c"), ("targetQueryValue", "1"), LOGIN, PASSWORD],
        answer: r#"{"response":{"numFound":4}}"#,
        asked: "GET /solr/c/select?q=*%3A*&rows=0&wt=json",
        header: BASIC,
        body: "",
        value: Ok((4.0, true)),
    })
    .await;
    check(Case {
        scaler: "couchdb",
        parameters: &[
            ("connectionString", "http://{}"),
            ("dbName", "d"),
            ("query", r#"{"selector": 1}"#),
            ("queryValue", "1"),
        ],
        answer: r#"{"docs":[{},{},{}]}"#,
        asked: "POST /d/_find",
        header: NONE,
        body: r#"{"selector":1}"#,
        value: Ok((3.0, true)),
    })
    .await;
}

#[tokio::test]
async fn databases_by_query() {
    check(Case {
        scaler: "arangodb",
        parameters: &[
            ("endpoints", "http://{}"),
            ("dbName", "d"),
            ("collection", "c"),
            ("query", "RETURN 1"),
            ("queryValue", "1"),
        ],
        answer: r#"{"result":[{"value":9}]}"#,
        asked: "POST /_db/d/_api/cursor",
        header: NONE,
        body: r#"{"query":"RETURN 1"}"#,
        value: Ok((9.0, true)),
    })
    .await;
    let clickhouse = |parameters, answer, value| Case {
        scaler: "clickhouse",
        parameters,
        answer,
        asked: "POST /?default_format=TabSeparated&readonly=1&database=d",
        header: ("x-clickhouse-user", "u"),
        body: "SELECT 1",
        value,
    };
    const STRING: &[(&str, &str)] =
        &[("connectionString", "clickhouse://u:p@{}/d"), ("query", "SELECT 1"), ("targetQueryValue", "1")];
    check(clickhouse(STRING, "17\n", Ok((17.0, true)))).await;
    check(clickhouse(STRING, "", Err("gave no number"))).await;
    check(clickhouse(STRING, "many\n", Err("is no number"))).await;
    const FLUX: &[(&str, &str)] = &[
        ("serverURL", "http://{}"),
        ("organizationName", "o"),
        ("authToken", "t"),
        ("query", "from(bucket: 1)"),
        ("thresholdValue", "1"),
    ];
    check(Case {
        scaler: "influxdb",
        parameters: FLUX,
        answer: "#datatype,string,long,double\r\n,result,table,_value\r\n,_result,0,6.5\r\n,_result,0,7\r\n",
        asked: "POST /api/v2/query?org=o",
        header: ("authorization", "Token t"),
        body: "from(bucket: 1)",
        value: Ok((6.5, true)),
    })
    .await;
    check(Case {
        scaler: "influxdb",
        parameters: &[
            ("serverURL", "http://{}"),
            ("influxVersion", "3"),
            ("database", "d"),
            ("metricKey", "n"),
            ("authToken", "t"),
            ("query", "SELECT n"),
            ("thresholdValue", "1"),
        ],
        answer: r#"[{"n":2}]"#,
        asked: "POST /api/v3/query_influxql",
        header: ("authorization", "Bearer t"),
        body: r#"{"db":"d","format":"json","q":"SELECT n"}"#,
        value: Ok((2.0, true)),
    })
    .await;
}

#[tokio::test]
async fn metrics_by_query() {
    let graphite = |answer, value| Case {
        scaler: "graphite",
        parameters: &[
            ("serverAddress", "http://{}"),
            ("query", "a.b"),
            ("queryTime", "-10min"),
            ("authMode", "basic"),
            LOGIN,
            PASSWORD,
        ],
        answer,
        asked: "GET /render?from=-10min&target=a.b&format=json",
        header: BASIC,
        body: "",
        value,
    };
    check(graphite(r#"[{"datapoints":[[1,1],[7,2],[null,3]]}]"#, Ok((7.0, true)))).await;
    check(graphite("[]", Ok((0.0, false)))).await;
    check(graphite(r#"[{"datapoints":[[null,1]]}]"#, Err("gave no number"))).await;
    check(graphite("[{},{}]", Err("gave 2 series"))).await;
    let loki = |answer, value| Case {
        scaler: "loki",
        parameters: &[("serverAddress", "http://{}"), ("query", "sum(x)"), ("threshold", "1"), ("tenantName", "t")],
        answer,
        asked: "GET /loki/api/v1/query?query=sum%28x%29",
        header: ("x-scope-orgid", "t"),
        body: "",
        value,
    };
    check(loki(r#"{"data":{"resultType":"vector","result":[{"value":[1,"3"]}]}}"#, Ok((3.0, true)))).await;
    check(loki(r#"{"data":{"resultType":"vector","result":[]}}"#, Ok((0.0, false)))).await;
    check(loki(r#"{"data":{"resultType":"vector","result":[{},{}]}}"#, Err("gave 2 series"))).await;
}

#[tokio::test]
async fn log_analytics_by_client_credentials() {
    let stub = Stub::start(|seen| {
        if seen.target == "/tenant/oauth2/v2.0/token" {
            assert!(seen.body.contains("client_id=id&client_secret=secret&scope=http%3A%2F%2F127.0.0.1"));
            return reply(200, r#"{"access_token":"t","expires_in":"3599"}"#);
        }
        assert_eq!(seen.target, "/v1/workspaces/w/query");
        assert_eq!(seen.header("authorization"), "Bearer t");
        assert_eq!(seen.body, r#"{"query":"Heartbeat | count"}"#);
        reply(200, r#"{"tables":[{"rows":[[11]]}]}"#)
    })
    .await;
    let url = stub.url("");
    let parameters = [
        ("cloud", "Private"),
        ("activeDirectoryEndpoint", url.as_str()),
        ("logAnalyticsResourceURL", url.as_str()),
        ("tenantId", "tenant"),
        ("clientId", "id"),
        ("clientSecret", "secret"),
        ("workspaceId", "w"),
        ("query", "Heartbeat | count"),
        ("threshold", "5"),
    ];
    assert_eq!(measured(&trigger("azure-log-analytics", &parameters)).await, Ok((11.0, true)));
}

#[tokio::test]
async fn what_is_missing_is_said() {
    for (scaler, wanted) in [
        ("activemq", "username"),
        ("arangodb", "endpoints"),
        ("artemis-queue", "username"),
        ("azure-log-analytics", "workspaceId"),
        ("clickhouse", "host"),
        ("couchdb", "host"),
        ("elasticsearch", "addresses or cloudID"),
        ("graphite", "serverAddress"),
        ("influxdb", "serverURL"),
        ("loki", "serverAddress"),
        ("opensearch", "addresses"),
        ("pulsar", "topic"),
        ("solr", "host"),
    ] {
        let error = measured(&trigger(scaler, &[])).await.unwrap_err();
        assert!(error.contains(wanted), "{scaler}: {error}");
    }
    assert_eq!(super::cloud("name:ZXUuZXMuaW8kYWJjJGRlZg==").unwrap(), "https://abc.eu.es.io");
    assert!(super::cloud("nonsense").is_err());
}
