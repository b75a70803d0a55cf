//! The registry against real clients: `skopeo` (Debian package), `oci-client`, and requests by hand for the rest.

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::middleware::{Next, from_fn};
use camino::Utf8PathBuf;
use expect_test::expect;
use oci_client::client::{ClientConfig, ClientProtocol, ImageLayer};
use oci_client::secrets::RegistryAuth;
use tower::ServiceExt as _;

use super::*;
use crate::sample::SAMPLE_IMAGE;
use crate::store::{PullPolicy, StoreConfig};
use crate::{Credentials, Image};

/// A store whose registry listens on a free port of loopback for as long as the value lives.
struct Served {
    dir: tempfile::TempDir,
    store: ImageStore,
    host: String,
    /// Blobs that were really sent.
    blob_gets: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn open(dir: &tempfile::TempDir, name: &str) -> ImageStore {
    let path = Utf8PathBuf::from_path_buf(dir.path().join(name)).unwrap();
    ImageStore::open(&path, StoreConfig::default()).unwrap()
}

impl Served {
    async fn start(config: RegistryConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, "served");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        store.add_registry_host(&host);
        let blob_gets = Arc::new(AtomicUsize::new(0));
        let counter = blob_gets.clone();
        let count = from_fn(move |request: Request, next: Next| {
            let is_blob = request.method() == Method::GET && request.uri().path().contains("/blobs/sha256:");
            counter.fetch_add(usize::from(is_blob), Ordering::SeqCst);
            next.run(request)
        });
        let router = store.registry(config).layer(count);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { dir, store, host, blob_gets, server }
    }

    /// Another store that knows nothing of this one but its address.
    fn client(&self) -> ImageStore {
        open(&self.dir, &format!("client-{}", uuid::Uuid::new_v4().simple()))
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn image(&self, name: &str) -> ImageRef {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    async fn skopeo(&self, arguments: &[&str]) -> String {
        let output = tokio::process::Command::new("skopeo")
            .args(["--insecure-policy", "--tmpdir", self.dir.path().to_str().unwrap()])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await.unwrap();
        let output = output.expect("the Debian package `skopeo` is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts the sample image into the served store under this repository and tag.
    async fn push_sample(&self, name: &str) -> Arc<Image> {
        let image = ensure(&self.store, &SAMPLE_IMAGE.parse().unwrap()).await.unwrap();
        let from = format!("docker://{}/sample:latest", self.host);
        let to = format!("docker://{}/{name}", self.host);
        self.skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &to]).await;
        image
    }
}

async fn ensure(store: &ImageStore, reference: &ImageRef) -> Result<Arc<Image>, ImageError> {
    store.ensure(reference, None, PullPolicy::Always, |_| {}).await
}

#[tokio::test]
async fn skopeo_pushes_and_what_it_pushed_runs_at_once() {
    let served = Served::start(RegistryConfig::default()).await;
    let sample = served.push_sample("team/app:v1").await;
    // Runnable here, without asking anyone, under each name of this registry.
    let local = ensure(&served.store, &served.image("team/app:v1")).await.unwrap();
    assert_eq!(local.layers, sample.layers);
    assert_eq!(local.reference.to_string(), "cove.local/team/app:v1");
    assert!(ensure(&served.store, &"cove.local/team/app:v1".parse().unwrap()).await.is_ok());
    // Skopeo sees it, and gets it back whole in three formats.
    let tags = served.skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{}/team/app", served.host)]).await;
    assert!(tags.contains("\"v1\""), "{tags}");
    let from = format!("docker://{}/team/app:v1", served.host);
    for (kind, file, tag) in [
        ("docker-archive", "docker.tar", ":docker.io/kept/name:1"),
        ("oci", "layout", ":v2"),
        ("oci-archive", "oci.tar", ":v3"),
    ] {
        let to = format!("{kind}:{}{tag}", served.path(file));
        served.skopeo(&["copy", "--src-tls-verify=false", &from, &to]).await;
        let store = served.client();
        let path = Utf8PathBuf::from(served.path(file));
        let names = store.import(&path, None).await.unwrap();
        let image = ensure(&store, &names[0]).await.unwrap();
        assert!(image.layers[0].join("sample").exists(), "{kind}");
        assert_eq!(image.config, sample.config);
    }
    // `docker save | gzip`, with the name that is inside.
    let plain = std::fs::read(served.path("docker.tar")).unwrap();
    let file = std::fs::File::create(served.path("docker.tar.gz")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    gzip.finish().unwrap();
    let store = served.client();
    let names = store.import(&Utf8PathBuf::from(served.path("docker.tar.gz")), None).await.unwrap();
    assert_eq!(names, ["kept/name:1".parse::<ImageRef>().unwrap()]);
}

#[tokio::test]
async fn an_image_is_pulled_once_however_many_want_it() {
    let served = Served::start(RegistryConfig::default()).await;
    served.push_sample("app:1").await;
    served.blob_gets.store(0, Ordering::SeqCst);
    let store = served.client();
    let name = served.image("app:1");
    let seen = std::sync::Mutex::new(Vec::new());
    let note = |now| seen.lock().unwrap().push(now);
    let (first, second) = tokio::join!(
        store.ensure(&name, None, PullPolicy::Always, note),
        store.ensure(&name, None, PullPolicy::Always, |_| {})
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    // One configuration, one layer.
    assert_eq!(served.blob_gets.load(Ordering::SeqCst), 2);
    assert!(seen.into_inner().unwrap().iter().any(|now| now.total_bytes > 0 && now.layers_total == 1));
    // Under another name the blobs are here already.
    served.push_sample("other:1").await;
    served.blob_gets.store(0, Ordering::SeqCst);
    let other = ensure(&store, &served.image("other:1")).await.unwrap();
    assert_eq!((served.blob_gets.load(Ordering::SeqCst), &other.layers), (0, &first.layers));
}

#[tokio::test]
async fn a_tag_is_asked_again_and_kept_when_nobody_answers() {
    let mut served = Served::start(RegistryConfig::default()).await;
    served.push_sample("app:1").await;
    let (store, name) = (served.client(), served.image("app:1"));
    let old = ensure(&store, &name).await.unwrap();
    // The tag moves to an image of one more layer.
    let changed = client_push(&served, "app", "1", b"a new layer").await;
    let kept = store.ensure(&name, None, PullPolicy::IfNotPresent, |_| {}).await.unwrap();
    assert_eq!(kept.digest, old.digest);
    let new = ensure(&store, &name).await.unwrap();
    assert_eq!(new.digest.to_string(), changed);
    // Nobody answers: what is here is used; a name that is not here says what happened.
    served.server.abort();
    assert!((&mut served.server).await.unwrap_err().is_cancelled());
    assert_eq!(ensure(&store, &name).await.unwrap().digest, new.digest);
    assert!(ensure(&store, &name.with_digest(&old.digest)).await.is_ok());
    let error = ensure(&store, &served.image("other:1")).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
}

/// Pushes an image of one layer with `oci-client` and returns the manifest's digest.
async fn client_push(served: &Served, repository: &str, tag: &str, content: &[u8]) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let client = oci_client::Client::try_from(config).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", content).unwrap();
    let tar = tar.into_inner().unwrap();
    let config_json = json!({ "architecture": crate::image::host_platform().architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar)] } });
    let layer = ImageLayer::oci_v1(tar, None);
    let config = oci_client::client::Config::oci_v1(config_json.to_string().into_bytes(), None);
    let reference = oci_client::Reference::with_tag(served.host.clone(), repository.into(), tag.into());
    let pushed = client.push(&reference, &[layer], config, &RegistryAuth::Anonymous, None).await.unwrap();
    let (_, digest) = client.pull_manifest(&reference, &RegistryAuth::Anonymous).await.unwrap();
    assert!(pushed.manifest_url.contains(&digest) || pushed.manifest_url.contains(tag), "{}", pushed.manifest_url);
    digest
}

#[tokio::test]
async fn a_wrong_byte_on_the_way_is_found() {
    let served = Served::start(RegistryConfig::default()).await;
    let sample = served.push_sample("app:1").await;
    // The registry's own blob goes bad after it was verified.
    let manifest = served.store.0.blobs.read_json(&sample.digest).unwrap().unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let path = served.store.0.blobs.path(&layer);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = served.client();
    let error = ensure(&store, &served.image("app:1")).await.unwrap_err();
    assert!(matches!(&error, ImageError::DigestMismatch { expected, .. } if *expected == layer), "{error}");
    assert!(store.get(&served.image("app:1")).is_none());
}

#[tokio::test]
async fn a_registry_that_lies_or_sleeps_is_not_waited_for() {
    // It answers every manifest request with the same index, whatever digest was asked for.
    let lie = Router::new()
        .route("/v2/", any(|| async { "{}" }))
        .route("/v2/{*rest}", any(|| async { r#"{"schemaVersion":2,"manifests":[]}"# }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    let liar = tokio::spawn(async move { axum::serve(listener, lie).await.unwrap() });
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, "store");
    let name: ImageRef = format!("{host}/app@{}", Digest::of(b"promised")).parse().unwrap();
    let error = ensure(&store, &name).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    let error = ensure(&store, &format!("{host}/app:1").parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error}");
    liar.abort();
    // It accepts connections and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("impatient")).unwrap();
    let config = StoreConfig { resolve_timeout: Duration::from_millis(100), ..StoreConfig::default() };
    let store = ImageStore::open(&path, config).unwrap();
    let name = format!("{}/app:1", listener.local_addr().unwrap()).parse().unwrap();
    let error = ensure(&store, &name).await.unwrap_err();
    assert!(matches!(error, ImageError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn an_abandoned_pull_leaves_nothing() {
    let served = Served::start(RegistryConfig::default()).await;
    served.push_sample("app:1").await;
    let (store, name) = (served.client(), served.image("app:1"));
    {
        let pull = store.ensure(&name, None, PullPolicy::Always, |_| {});
        tokio::pin!(pull);
        // Given up as soon as the first blob was asked for.
        served.blob_gets.store(0, Ordering::SeqCst);
        while served.blob_gets.load(Ordering::SeqCst) == 0 {
            assert!(futures_util::poll!(&mut pull).is_pending());
            tokio::task::yield_now().await;
        }
    }
    let image = tokio::time::timeout(Duration::from_secs(20), ensure(&store, &name)).await.unwrap().unwrap();
    assert!(image.layers[0].join("sample").exists());
    assert_eq!(std::fs::read_dir(image.layers[0].parent().unwrap()).unwrap().count(), 2);
}

#[tokio::test]
async fn logins_are_checked_and_refusals_explained() {
    let authorize: AuthorizationCheck = Arc::new(|authorization, _, _| {
        // user:secret
        authorization == Some("Basic dXNlcjpzZWNyZXQ=")
    });
    let served = Served::start(RegistryConfig { authorize: Some(authorize), ..RegistryConfig::default() }).await;
    ensure(&served.store, &SAMPLE_IMAGE.parse().unwrap()).await.unwrap();
    let store = served.client();
    let login = |password: &str| Some(Credentials { username: "user".into(), password: password.into() });
    let name = served.image("sample:latest");
    let mut table = String::new();
    for (credentials, image) in
        [(None, name.clone()), (login("wrong"), name.clone()), (login("secret"), served.image("absent:1"))]
    {
        let error = store.ensure(&image, credentials, PullPolicy::Always, |_| {}).await.unwrap_err();
        table.push_str(&format!("{error}\n").replace(&served.host, "HOST"));
    }
    expect![[r#"
        registry `HOST` refused access without a login for image `HOST/sample:latest`: not authorized; add the registry's server, user name and password to the app
        registry `HOST` refused the login given for image `HOST/sample:latest`: not authorized; check user name and password, and that this user may pull the image
        image `HOST/absent:1` was not found in registry `HOST`; check its name and tag, or give a login if it is private
    "#]].assert_eq(&table);
    store.ensure(&name, login("secret"), PullPolicy::Always, |_| {}).await.unwrap();
    let from = format!("docker://{}/sample:latest", served.host);
    served.skopeo(&["inspect", "--tls-verify=false", "--creds", "user:secret", &from]).await;
}

/// Sends requests by hand and notes what comes back.
struct ByHand {
    router: Router,
    notes: String,
}

impl ByHand {
    async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (HeaderMap, Vec<u8>) {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_vec())).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
        let shown: Vec<_> = ["range", "content-range", "link", "content-length"]
            .iter()
            .filter_map(|name| parts.headers.get(*name).map(|value| format!(" {name}={}", value.to_str().unwrap())))
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        let path = path.split("uploads/").next().unwrap();
        self.notes.push_str(&format!("{method} {path} -> {}{} {text}\n", parts.status.as_u16(), shown.concat()));
        (parts.headers, bytes)
    }
}

fn by_hand(dir: &tempfile::TempDir) -> ByHand {
    let config = RegistryConfig { blob_size_max: 40, uploads_max: 2, ..RegistryConfig::default() };
    ByHand { router: open(dir, "store").registry(config), notes: String::new() }
}

#[tokio::test]
async fn blobs_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut by_hand = by_hand(&dir);
    let hello = Digest::of(b"hello world");
    by_hand.send("GET", "/v2/", &[], b"").await;
    by_hand.send("GET", &format!("/v2/a/b/blobs/{hello}"), &[], b"").await;
    // In pieces, one of them out of order.
    let (headers, _) = by_hand.send("POST", "/v2/a/b/blobs/uploads/", &[], b"").await;
    let upload = headers["location"].to_str().unwrap().to_owned();
    by_hand.send("PATCH", &upload, &[("content-range", "0-4")], b"hello").await;
    by_hand.send("PATCH", &upload, &[("content-range", "9-10")], b"ld").await;
    by_hand.send("GET", &upload, &[], b"").await;
    by_hand.send("PATCH", &upload, &[], b" wor").await;
    let encoded = hello.as_str().replace(':', "%3A");
    by_hand.send("PUT", &format!("{upload}?digest={encoded}"), &[], b"ld").await;
    by_hand.send("GET", &upload, &[], b"").await;
    let blob = format!("/v2/a/b/blobs/{hello}");
    by_hand.send("HEAD", &blob, &[], b"").await;
    by_hand.send("GET", &blob, &[("range", "bytes=6-")], b"").await;
    by_hand.send("GET", &blob, &[("range", "bytes=99-")], b"").await;
    by_hand.send("DELETE", &blob, &[], b"").await;
    // At once, mounted, wrong, too large, too many.
    let whole = Digest::of(b"{}");
    by_hand.send("POST", &format!("/v2/a/b/blobs/uploads/?digest={whole}"), &[], b"{}").await;
    by_hand.send("POST", &format!("/v2/c/blobs/uploads/?mount={hello}&from=a/b"), &[], b"").await;
    by_hand.send("POST", &format!("/v2/c/blobs/uploads/?digest={whole}"), &[], b"other").await;
    by_hand.send("POST", &format!("/v2/c/blobs/uploads/?digest={whole}"), &[], &[0; 41]).await;
    by_hand.send("POST", "/v2/c/blobs/uploads/", &[], b"").await;
    let (headers, _) = by_hand.send("POST", "/v2/c/blobs/uploads/", &[], b"").await;
    by_hand.send("POST", "/v2/c/blobs/uploads/", &[], b"").await;
    by_hand.send("DELETE", headers["location"].to_str().unwrap(), &[], b"").await;
    by_hand.send("GET", "/v2/UPPER/tags/list", &[], b"").await;
    by_hand.send("GET", "/v2/a/../b/tags/list", &[], b"").await;
    by_hand.send("GET", "/v2/nothing", &[], b"").await;
    expect![[r#"
        GET /v2/ -> 200 content-length=2 {}
        GET /v2/a/b/blobs/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 -> 404 content-length=163 {"errors":[{"code":"BLOB_UNKNOWN","detail":null,"message":"blob sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 is not in this registry"}]}
        POST /v2/a/b/blobs/ -> 202 range=0-0 content-length=0 
        PATCH /v2/a/b/blobs/ -> 202 range=0-4 content-length=0 
        PATCH /v2/a/b/blobs/ -> 416 range=0-4 content-length=100 {"errors":[{"code":"BLOB_UPLOAD_INVALID","detail":null,"message":"the piece must begin at byte 5"}]}
        GET /v2/a/b/blobs/ -> 204 range=0-4 content-length=0 
        PATCH /v2/a/b/blobs/ -> 202 range=0-8 content-length=0 
        PUT /v2/a/b/blobs/ -> 201 content-length=0 
        GET /v2/a/b/blobs/ -> 404 content-length=143 {"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","detail":null,"message":"this upload is not known; it ended, or was idle too long: begin a new one"}]}
        HEAD /v2/a/b/blobs/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 -> 200 content-length=11 
        GET /v2/a/b/blobs/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 -> 206 content-range=bytes 6-10/11 content-length=5 world
        GET /v2/a/b/blobs/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 -> 416 content-range=bytes */11 content-length=105 {"errors":[{"code":"UNSUPPORTED","detail":null,"message":"the range is outside of the blob's 11 bytes"}]}
        DELETE /v2/a/b/blobs/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 -> 405 content-length=95 {"errors":[{"code":"UNSUPPORTED","detail":null,"message":"this registry does not offer that"}]}
        POST /v2/a/b/blobs/ -> 201 content-length=0 
        POST /v2/c/blobs/ -> 201 content-length=0 
        POST /v2/c/blobs/ -> 400 content-length=251 {"errors":[{"code":"DIGEST_INVALID","detail":null,"message":"the upload's digest is sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa, not sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a; send it again"}]}
        POST /v2/c/blobs/ -> 413 content-length=87 {"errors":[{"code":"SIZE_INVALID","detail":null,"message":"a blob may have 40 bytes"}]}
        POST /v2/c/blobs/ -> 202 range=0-0 content-length=0 
        POST /v2/c/blobs/ -> 202 range=0-0 content-length=0 
        POST /v2/c/blobs/ -> 429 content-length=110 {"errors":[{"code":"TOOMANYREQUESTS","detail":null,"message":"too many uploads are open; finish some first"}]}
        DELETE /v2/c/blobs/ -> 204 content-length=0 
        GET /v2/UPPER/tags/list -> 400 content-length=99 {"errors":[{"code":"NAME_INVALID","detail":null,"message":"the repository must be in lower case"}]}
        GET /v2/a/../b/tags/list -> 400 content-length=144 {"errors":[{"code":"NAME_INVALID","detail":null,"message":"`..` is not part of a repository name (lower-case letters, digits, `.`, `_`, `-`)"}]}
        GET /v2/nothing -> 404 content-length=120 {"errors":[{"code":"NOT_FOUND","detail":null,"message":"there is nothing under this path; everything is below `/v2/`"}]}
    "#]].assert_eq(&by_hand.notes);
}

#[tokio::test]
async fn manifests_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut by_hand = by_hand(&dir);
    let (hello, whole) = (Digest::of(b"hello world"), Digest::of(b"{}"));
    by_hand.send("POST", &format!("/v2/a/b/blobs/uploads/?digest={hello}"), &[], b"hello world").await;
    by_hand.send("POST", &format!("/v2/a/b/blobs/uploads/?digest={whole}"), &[], b"{}").await;
    let manifest = |layer: &Digest| {
        json!({ "schemaVersion": 2, "config": { "mediaType": "c", "digest": whole, "size": 2 },
            "layers": [{ "mediaType": "l", "digest": layer, "size": 11 }] })
        .to_string()
    };
    by_hand.send("PUT", "/v2/a/b/manifests/v1", &[], manifest(&Digest::of(b"absent")).as_bytes()).await;
    by_hand.send("PUT", "/v2/a/b/manifests/v1", &[], b"{}").await;
    let good = manifest(&hello);
    let digest = Digest::of(good.as_bytes());
    for tag in ["v1", "v2", "v3"] {
        by_hand.send("PUT", &format!("/v2/a/b/manifests/{tag}"), &[], good.as_bytes()).await;
    }
    by_hand.send("PUT", &format!("/v2/c/manifests/{hello}"), &[], good.as_bytes()).await;
    by_hand.send("PUT", &format!("/v2/c/manifests/{digest}"), &[], good.as_bytes()).await;
    by_hand.send("HEAD", "/v2/a/b/manifests/v2", &[], b"").await;
    by_hand.send("GET", "/v2/a/b/manifests/none", &[], b"").await;
    by_hand.send("GET", "/v2/a/b/tags/list?n=2", &[], b"").await;
    by_hand.send("GET", "/v2/a/b/tags/list?n=2&last=v2", &[], b"").await;
    by_hand.send("GET", "/v2/c/tags/list", &[], b"").await;
    by_hand.send("GET", "/v2/x/tags/list", &[], b"").await;
    by_hand.send("GET", "/v2/_catalog?n=1", &[], b"").await;
    by_hand.send("DELETE", "/v2/a/b/manifests/v3", &[], b"").await;
    by_hand.send("DELETE", &format!("/v2/a/b/manifests/{digest}"), &[], b"").await;
    by_hand.send("DELETE", &format!("/v2/a/b/manifests/{digest}"), &[], b"").await;
    expect![[r#"
        POST /v2/a/b/blobs/ -> 201 content-length=0 
        POST /v2/a/b/blobs/ -> 201 content-length=0 
        PUT /v2/a/b/manifests/v1 -> 400 content-length=199 {"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","detail":null,"message":"the manifest names blob sha256:5ad38304b535c2987dbd24657c1a11b884984ff600d9f389deb0d4e634fee792, which was not pushed before it"}]}
        PUT /v2/a/b/manifests/v1 -> 400 content-length=180 {"errors":[{"code":"MANIFEST_INVALID","detail":null,"message":"the manifest is not a usable image: its manifest cannot be read: missing field `schemaVersion` at line 1 column 2"}]}
        PUT /v2/a/b/manifests/v1 -> 201 content-length=0 
        PUT /v2/a/b/manifests/v2 -> 201 content-length=0 
        PUT /v2/a/b/manifests/v3 -> 201 content-length=0 
        PUT /v2/c/manifests/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9 -> 400 content-length=238 {"errors":[{"code":"DIGEST_INVALID","detail":null,"message":"the manifest's digest is sha256:0dc40d04ef3d65d157823d1840b5f8f0c36b14b53dad6f9bbac52d018991d945, not sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"}]}
        PUT /v2/c/manifests/sha256:0dc40d04ef3d65d157823d1840b5f8f0c36b14b53dad6f9bbac52d018991d945 -> 201 content-length=0 
        HEAD /v2/a/b/manifests/v2 -> 200 content-length=260 
        GET /v2/a/b/manifests/none -> 404 content-length=108 {"errors":[{"code":"MANIFEST_UNKNOWN","detail":null,"message":"manifest `none` is not in this repository"}]}
        GET /v2/a/b/tags/list?n=2 -> 200 link=</v2/a/b/tags/list?n=2&last=v2>; rel="next" content-length=33 {"name":"a/b","tags":["v1","v2"]}
        GET /v2/a/b/tags/list?n=2&last=v2 -> 200 content-length=28 {"name":"a/b","tags":["v3"]}
        GET /v2/c/tags/list -> 200 content-length=22 {"name":"c","tags":[]}
        GET /v2/x/tags/list -> 404 content-length=101 {"errors":[{"code":"NAME_UNKNOWN","detail":null,"message":"repository `x` is not in this registry"}]}
        GET /v2/_catalog?n=1 -> 200 link=</v2/_catalog?n=1&last=a/b>; rel="next" content-length=24 {"repositories":["a/b"]}
        DELETE /v2/a/b/manifests/v3 -> 202 content-length=0 
        DELETE /v2/a/b/manifests/sha256:0dc40d04ef3d65d157823d1840b5f8f0c36b14b53dad6f9bbac52d018991d945 -> 202 content-length=0 
        DELETE /v2/a/b/manifests/sha256:0dc40d04ef3d65d157823d1840b5f8f0c36b14b53dad6f9bbac52d018991d945 -> 404 content-length=175 {"errors":[{"code":"MANIFEST_UNKNOWN","detail":null,"message":"manifest `sha256:0dc40d04ef3d65d157823d1840b5f8f0c36b14b53dad6f9bbac52d018991d945` is not in this repository"}]}
    "#]].assert_eq(&by_hand.notes);
}
