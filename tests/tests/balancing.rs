//! Policies of load balancing, through real sidecars: who gets what, and who takes over.

use std::{collections::HashMap, time::Duration};

use http::Method;
use outrigger_e2e::harness::{
    self, Mesh, Shop,
    client::body,
    shop::{orders, request, unhindered_orders},
};
use serde_json::json;

const USERS: usize = 40;

/// Who answers this user, by a header, a cookie or a query parameter; asked over several connections, so of several workers.
async fn answer_for(shop: &Shop, by: &str, user: usize) -> String {
    let path = if by == "query" { format!("/?a=1&user={user}") } else { "/".to_owned() };
    let mut asked = request(user.is_multiple_of(2), &Method::GET, &path, body(""));
    match by {
        "header" => drop(asked.headers_mut().insert("x-user", user.to_string().parse().unwrap())),
        "cookie" => drop(asked.headers_mut().insert("cookie", format!("a=1; user={user}").parse().unwrap())),
        _ => {}
    }
    shop.client.send(shop.replicas[0].pod.at4(8080), user.is_multiple_of(2), asked).await.text()
}

async fn answers(shop: &Shop, by: &str) -> HashMap<usize, String> {
    let mut all = HashMap::new();
    for user in 0..USERS {
        let first = answer_for(shop, by, user).await;
        for _ in 0..3 {
            assert_eq!(answer_for(shop, by, user).await, first, "user {user} by {by}");
        }
        all.insert(user, first);
    }
    all
}

fn by_user(policy: &str, by: &str) -> serde_json::Value {
    let hash = match by {
        "header" => json!({ "header": "x-user" }),
        "cookie" => json!({ "cookie": "user" }),
        _ => json!({ "query": "user" }),
    };
    orders(json!({ "load_balancing": { "policy": policy, "hash": [hash] } }))
}

#[test]
fn a_user_keeps_the_replica_while_it_lives_and_those_of_others_are_not_moved() {
    harness::run(async {
        for (policy, by) in [("maglev", "header"), ("ring_hash", "cookie"), ("maglev", "query")] {
            let mut shop = Shop::open(Mesh::new(), 3, 60, by_user(policy, by)).await;
            let before = answers(&shop, by).await;
            for name in ["orders1\n", "orders2\n", "orders3\n"] {
                let share = before.values().filter(|answer| *answer == name).count();
                assert!((3..=28).contains(&share), "{policy}: {name} has {share} of {USERS} users");
            }
            shop.replicas[1].kill();
            // The first to find out has it tried elsewhere.
            let during = answers(&shop, by).await;
            for (user, answer) in &before {
                if answer == "orders2\n" {
                    assert_ne!(during[user], *answer);
                } else {
                    assert_eq!(during[user], *answer, "user {user} was moved");
                }
            }
            let Shop { replicas, mesh, .. } = &mut shop;
            replicas[1].restart(mesh).await;
            harness::eventually("all are where they were", Duration::from_secs(40), || async {
                for user in 0..USERS {
                    let now = answer_for(&shop, by, user).await;
                    if now != before[&user] {
                        return Err(format!("user {user}: {now}"));
                    }
                }
                Ok(())
            })
            .await;
        }
    });
}

#[test]
fn turns_are_even_to_the_request() {
    harness::run(async {
        let config = unhindered_orders(json!({ "load_balancing": { "policy": "round_robin" } }));
        let shop = Shop::open(Mesh::new(), 3, 60, config).await;
        for _ in 0..300 {
            assert_eq!(shop.get("/").await.status, 200);
        }
        for replica in &shop.replicas {
            let count = replica.count().await;
            assert!((99..=101).contains(&count), "{count} of 300");
        }
    });
}
