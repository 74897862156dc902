//! Listing of records for operators.

use std::collections::{BTreeMap, BTreeSet};

use nevertwice::store::Store;
use nevertwice::{Cursor, Engine, RecordId, RedisStore, StoreError};

use crate::server::Server;
use crate::{acquire, block_on_tokio, connect, name, request, set};

/// Reads all pages. Returns how often each id came, and the unreadable ones.
async fn list(store: &RedisStore, limit: usize) -> (BTreeMap<RecordId, usize>, Vec<RecordId>) {
    let (mut seen, mut unreadable) = (BTreeMap::new(), Vec::new());
    let mut after = None;
    loop {
        let page = store.scan(after.as_ref(), limit).await.unwrap();
        assert!(page.records.len() <= limit.clamp(1, 256) + 64, "{}", page.records.len());
        for (id, record) in page.records {
            assert!(record.stamp <= page.now);
            *seen.entry(id).or_insert(0) += 1;
        }
        unreadable.extend(page.unreadable);
        assert_ne!(page.now.0, 0);
        match page.next {
            Some(next) => after = Some(next),
            None => return (seen, unreadable),
        }
    }
}

#[test]
fn a_quiet_server_lists_everything_once() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        assert_eq!(list(&store, 10).await, (BTreeMap::new(), Vec::new()));
        let engine = Engine::builder(store.clone()).build().unwrap();
        let mut expected = BTreeMap::new();
        for number in 0..500 {
            let request = request(&format!("{number}"));
            let _ = acquire(&engine, &request).await;
            expected.insert(request.id(), 1);
        }
        for limit in [0, 1, 7, 100, usize::MAX] {
            assert_eq!(list(&store, limit).await, (expected.clone(), Vec::new()), "{limit}");
        }
    });
}

#[test]
fn what_is_no_record_of_the_store_is_left_out() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        acquire(&engine, &request("released")).await.release().await.unwrap();
        acquire(&engine, &request("kept")).await.complete("done").await.unwrap();
        set(&server, b"nevertwice:short", b"x");
        set(&server, &[b"nevertwice:", &[7; 33][..]].concat(), b"x");
        set(&server, &[b"somebody's:", &[7; 32][..]].concat(), b"x");
        for number in 0..2000 {
            set(&server, format!("foreign {number}").as_bytes(), b"x");
        }
        let expected = BTreeMap::from([(request("kept").id(), 1)]);
        assert_eq!(list(&store, 1).await, (expected.clone(), Vec::new()));
        assert_eq!(list(&store, 100).await, (expected, Vec::new()));
    });
}

#[test]
fn what_cannot_be_read_is_named() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let _ = acquire(&engine, &request("fine")).await;
        set(&server, &name(&request("text")), b"a text that is no record");
        redis::cmd("HSET").arg(name(&request("hash"))).arg("f").arg("v").exec(&mut server.raw()).unwrap();
        let (seen, mut unreadable) = list(&store, 10).await;
        assert_eq!(seen, BTreeMap::from([(request("fine").id(), 1)]));
        let mut expected = vec![request("text").id(), request("hash").id()];
        unreadable.sort();
        expected.sort();
        assert_eq!(unreadable, expected);
    });
}

#[test]
fn a_prefix_of_glob_characters_is_taken_literally() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let prefixes = ["", "*", "?", "[a-z]", "[^x]", "a", "a*", "a\\*", "a\\", "a]", "a[", "ä*:"];
        let mut stores = Vec::new();
        for prefix in prefixes {
            let store = RedisStore::builder(&server.url()).prefix(prefix).connect().await.unwrap();
            let engine = Engine::builder(store.clone()).build().unwrap();
            let _ = acquire(&engine, &request(&format!("k{prefix}"))).await;
            stores.push((prefix, store));
        }
        for (prefix, store) in stores {
            let expected = BTreeMap::from([(request(&format!("k{prefix}")).id(), 1)]);
            assert_eq!(list(&store, 100).await, (expected, Vec::new()), "{prefix}");
        }
    });
}

/// Each start of a server orders its keys anew.
#[test]
fn a_listing_misses_nothing_although_the_server_is_started_again() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let requests: Vec<_> = (0..500).map(|number| request(&format!("{number}"))).collect();
        for begun in engine.begin_many(&requests).await {
            let _ = begun.unwrap();
        }
        let (mut seen, mut after, mut pages) = (BTreeSet::new(), None, 0);
        loop {
            // The connection was lost with the server.
            let Ok(page) = store.scan(after.as_ref(), 50).await else { continue };
            seen.extend(page.records.into_iter().map(|(id, _)| id));
            pages += 1;
            if pages % 3 == 0 && pages < 10 {
                server.kill();
                server.restart();
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert!(pages >= 10, "{pages}");
        assert_eq!(requests.iter().filter(|request| !seen.contains(&request.id())).count(), 0);
    });
}

#[test]
fn a_cursor_of_another_store_is_refused() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        for cursor in [&b""[..], b"x", b"-1", b"99999999999999999999", b"\xff"] {
            let refused = store.scan(Some(&Cursor(cursor.to_vec())), 10).await.unwrap_err();
            assert!(matches!(refused, StoreError::Unusable { .. }), "{refused}");
        }
    });
}

#[test]
fn a_user_who_may_not_list_is_told() {
    let server = Server::start(&[]);
    server.ask::<()>("ACL SETUSER hugo on >s3cret ~nevertwice:* &nevertwice:* +@all -scan");
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url_as("hugo", "s3cret")).await.unwrap();
        let refused = store.scan(None, 10).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Unusable { detail, .. } if detail.contains("+scan")),
            "{refused}"
        );
    });
}
