//! Who a container runs as: what the configuration says, in the words of the image's own `/etc/passwd` and `/etc/group`.

use super::UnpackError;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// How many further groups a user may have.
const MAX_GROUPS: usize = 1024;

/// Who a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Further groups.
    pub(super) groups: Vec<u32>,
}

/// Reads `USER[:GROUP]`, each a name or a number; nothing means root.
pub(super) fn find(user: &str, passwd: &str, group: &str) -> Result<User, UnpackError> {
    let unknown = |file| UnpackError::User { user: user.to_owned(), file };
    let (name, group_name) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let mut found = User::default();
    let known = lines(passwd).find(|fields| fields.first() == Some(&name) || fields.get(2) == Some(&name));
    let mut login = name;
    match (known, name.parse()) {
        (Some(fields), _) => {
            let number = |at: usize| fields.get(at).and_then(|it| it.parse().ok());
            (found.uid, found.gid) = number(2).zip(number(3)).ok_or_else(|| unknown(PASSWD))?;
            login = fields.first().copied().unwrap_or_default();
        }
        (None, Ok(uid)) => found.uid = uid,
        (None, Err(_)) => return Err(unknown(PASSWD)),
    }
    match group_name.filter(|it| !it.is_empty()) {
        Some(name) => {
            let known = lines(group).find(|fields| fields.first() == Some(&name));
            let number = known.and_then(|fields| fields.get(2)?.parse().ok()).or_else(|| name.parse().ok());
            found.gid = number.ok_or_else(|| unknown(GROUP))?;
        }
        None => {
            let is_in = |fields: &Vec<&str>| {
                fields.get(3).is_some_and(|members| members.split(',').any(|member| member == login))
            };
            let groups = lines(group).filter(is_in).filter_map(|fields| fields.get(2)?.parse().ok());
            found.groups = groups.filter(|gid| *gid != found.gid).take(MAX_GROUPS).collect();
        }
    }
    Ok(found)
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/:/bin/false\n# old:x:1:1\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:www,ann\nvideo:x:44:ann,www\nstaff:x:50:\n";

    fn found(user: &str) -> Option<(u32, u32, Vec<u32>)> {
        find(user, PASSWD, GROUP).ok().map(|it| (it.uid, it.gid, it.groups))
    }

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        assert_eq!(found(""), Some((0, 0, vec![])));
        assert_eq!(found("www"), Some((33, 34, vec![29, 44])));
        assert_eq!(found("33"), Some((33, 34, vec![29, 44])));
        assert_eq!(found("www:staff"), Some((33, 50, vec![])));
        assert_eq!(found("www:7"), Some((33, 7, vec![])));
        assert_eq!(found("1000:1001"), Some((1000, 1001, vec![])));
        assert_eq!(found("1000"), Some((1000, 0, vec![])));
        assert_eq!(found(":staff"), Some((0, 50, vec![])));
        assert_eq!((found("nobody"), found("www:none"), found("broken")), (None, None, None));
    }

    #[test]
    fn an_image_without_users_runs_as_numbers_alone() {
        assert_eq!(find("5:6", "", "").ok(), Some(User { uid: 5, gid: 6, groups: vec![] }));
        assert!(find("www", "", "").is_err_and(|error| error.to_string().contains("/etc/passwd")));
    }
}
