#!/usr/bin/env bash
# Gives the three principals of healthingest what each needs on one machine, by POSIX ACLs (Debian package acl).
#
#   ingestion  owns everything and holds the installation's keyring
#   steward    reads quarantine, audit, alerts, reports, silver, gold and the vault; changes client configs
#   analyst    reads silver, gold and the vault
#
# Whoever reads the vault sees the columns that the own keyring opens (healthingest keys role), and nothing else.
# Stewards and analysts write the events of their reading; nobody but ingestion reads bronze or the ledgers.
#
# Run as root, once, and again after a new client, its own table of silver or a restore; it changes permissions only:
#   deploy/posix/setup.sh HOME_FOLDER [INGESTION_USER STEWARD_GROUP ANALYST_GROUP]
set -euo pipefail

home=${1:?usage: setup.sh HOME_FOLDER [INGESTION_USER STEWARD_GROUP ANALYST_GROUP]}
ingestion=${2:-healthingest}
steward=${3:-healthingest-steward}
analyst=${4:-healthingest-analyst}

command -v setfacl >/dev/null || { echo "setup.sh: setfacl is missing; install the package acl." >&2; exit 1; }
for group in "$steward" "$analyst"; do
    getent group "$group" >/dev/null || { echo "setup.sh: there is no group $group; make it with groupadd." >&2; exit 1; }
done
id "$ingestion" >/dev/null

output="$home/output" landing="$home/input/raw" configs="$home/client_configs"
mkdir -p "$landing" "$configs" "$output"/{silver,vault,gold,quarantine,reports,proposals,checkpoint/{audit,alerts,alert_mutes,contracts,destinations,drift,events,migrations,proposals,sightings}}
setfacl -R -b "$home"
chown -R "$ingestion": "$home"
chmod -R u=rwX,go= "$home"

# may_read GROUP FOLDER: what is there and what will come.
may_read() {
    setfacl -R -m "g:$1:rX" "$2"
    find "$2" -type d -exec setfacl -m "d:u::rwX,d:g::-,d:o::-,d:g:$1:rX" {} +
}
# may_pass GROUP FOLDER: go through, without seeing what else is there.
may_pass() { setfacl -m "g:$1:x" "$2"; }

for group in "$steward" "$analyst"; do
    for folder in "$home" "$output" "$output/checkpoint"; do may_pass "$group" "$folder"; done
    for note in "$output"/keyring.id "$output"/keyring.generations; do
        if [ -e "$note" ]; then setfacl -m "g:$group:r" "$note"; fi
    done
    for folder in "$output"/{silver,vault,gold,checkpoint/contracts,checkpoint/destinations,checkpoint/sightings} "$output"/silver_*/; do
        if [ -d "$folder" ]; then may_read "$group" "$folder"; fi  # clients' own tables, as far as there are any
    done
    may_read "$group" "$configs"
    # Whoever writes the first event of a client owns its chain: all must be able to go on with it.
    setfacl -R -m "g:$group:rwX,u:$ingestion:rwX" "$output/checkpoint/events"
    setfacl -m "d:u::rwX,d:g::-,d:o::-,d:g:$group:rwX,d:u:$ingestion:rwX" "$output/checkpoint/events"
done
for folder in quarantine reports proposals checkpoint/{audit,alerts,alert_mutes,drift,migrations,proposals}; do may_read "$steward" "$output/$folder"; done
setfacl -R -m "g:$steward:rwX" "$configs"
find "$configs" -type d -exec setfacl -m "d:g:$steward:rwX" {} +
echo "Done. Issue keyrings with: healthingest keys role NAME --out FILE --kek URI"
