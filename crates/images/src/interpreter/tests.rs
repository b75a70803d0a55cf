//! The layout is one that the store imports, and says the same twice; the names are stable.

use camino::Utf8PathBuf;

use super::*;
use crate::{ImageStore, PullPolicy, StoreConfig};

#[test]
fn interpreters_have_words_and_images() {
    for kind in Interpreter::ALL {
        assert_eq!(Interpreter::from_word(kind.as_str()), Some(kind));
        assert_eq!(kind.image(), format!("cove.local/interpreter-{}:latest", kind.as_str()));
    }
    assert_eq!(Interpreter::from_word("ruby"), None);
    let recipes: std::collections::BTreeSet<String> = Interpreter::ALL.map(Interpreter::recipe).into();
    assert_eq!(recipes.len(), 3);
}

#[tokio::test]
async fn a_system_in_the_cache_makes_an_image_that_can_be_imported_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| Utf8PathBuf::try_from(dir.path().join(name)).unwrap();
    let kind = Interpreter::Shell;
    let home = path("cache").join(format!("shell-{}", kind.recipe()));
    std::fs::create_dir_all(&home).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o755);
    tar.append_data(&mut header, "usr/bin/python3", &b"abc"[..]).unwrap();
    layout::keep_system(&tar.into_inner().unwrap()[..], &home).unwrap();

    let options = BuildOptions { cache: path("cache"), mirror: None, is_forced: false };
    let built = build_interpreter(kind, &options, &|line| panic!("nothing is to be done: {line}")).unwrap();
    assert!(built.is_from_cache);
    let again = build_interpreter(kind, &options, &|_| {}).unwrap();
    assert_eq!(built.digest, again.digest);

    let store = ImageStore::open(&path("store"), StoreConfig::default()).unwrap();
    let name: crate::ImageRef = kind.image().parse().unwrap();
    store.import(&built.layout, Some(&name)).await.unwrap();
    store.import(&built.layout, Some(&name)).await.unwrap();
    let image = store.ensure(&name, None, PullPolicy::Always, |_| {}).await.unwrap();
    assert_eq!(image.digest, built.digest);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.config.entrypoint, ["/usr/bin/python3", "/opt/cove/serve.py", "shell"]);
    assert_eq!(image.config.user, "1000:1000");
}
