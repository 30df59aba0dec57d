//! Accounts and keys.

use cxmpute_store::{KeyKind, NewUser, UserCreated};
use cxmpute_wire::{KeyId, UserId};

use crate::world::{NOW, account, databases, user_id};

#[tokio::test]
async fn an_address_has_one_account_in_any_spelling() {
    for fresh in databases().await {
        let (id, _) = account(&fresh.db, "ada").await;
        let second = NewUser { id: user_id("other"), email: " ADA@Example.ORG ".into(), created_at: NOW };
        match fresh.db.create_user(&second).await.unwrap() {
            UserCreated::Exists(row) => assert_eq!(row.id, id),
            UserCreated::Created(_) => panic!("{}: two accounts of one address", fresh.name),
        }
        assert_eq!(fresh.db.find_user_by_email("Ada@example.org").await.unwrap().unwrap().id, id);
        assert!(fresh.db.find_user(&user_id("other")).await.unwrap().is_none());
        account(&fresh.db, "bob").await;
        let all = fresh.db.list_users(None, 10).await.unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(fresh.db.list_users(Some(&all[0].id), 10).await.unwrap(), all[1..]);
    }
}

#[tokio::test]
async fn suspension_and_revocation_are_visible_with_the_key() {
    for fresh in databases().await {
        let (user, key) = account(&fresh.db, "ada").await;
        let row = fresh.db.find_key(&key).await.unwrap().unwrap();
        assert_eq!((row.kind, row.suspended, row.revoked_at), (KeyKind::Api, false, None));
        assert_eq!(row.hash, b"ada");
        assert!(fresh.db.suspend_user(&user, "test", NOW).await.unwrap());
        assert!(!fresh.db.suspend_user(&user, "test", NOW).await.unwrap());
        assert!(fresh.db.find_key(&key).await.unwrap().unwrap().suspended);
        assert!(fresh.db.unsuspend_user(&user).await.unwrap());
        assert!(!fresh.db.find_key(&key).await.unwrap().unwrap().suspended);
        let stranger = UserId::from_tail("stranger");
        assert!(!fresh.db.revoke_key(&key, Some(&stranger), NOW).await.unwrap());
        assert!(fresh.db.revoke_key(&key, Some(&user), NOW).await.unwrap());
        assert!(!fresh.db.revoke_key(&key, None, NOW).await.unwrap());
        assert_eq!(fresh.db.list_keys(&user).await.unwrap()[0].revoked_at, Some(NOW));
        assert!(fresh.db.find_key(&KeyId::from_tail("none")).await.unwrap().is_none());
    }
}
