#!/usr/bin/env bash
# What gcp.yaml needs beside machines: bash cluster/gcp-setup.sh PROJECT SSH_FROM (such as 203.0.113.7/32)
#                          and to remove it: bash cluster/gcp-setup.sh PROJECT down (the bucket is kept: it holds results)
set -euo pipefail
cd "$(dirname "$0")"
usage="usage: bash cluster/gcp-setup.sh PROJECT SSH_FROM | PROJECT down"
project=${1:?$usage} from=${2:?$usage}
case $from in */0) echo "SSH_FROM is $from, the whole internet; give your own address" >&2; exit 2 ;; esac
worker=raygrad-worker@$project.iam.gserviceaccount.com
g() { gcloud --project "$project" --quiet "$@"; }

if [ "$from" = down ]; then
  g compute firewall-rules delete raygrad-ssh raygrad-among
  g compute networks delete raygrad
  g iam service-accounts delete "$worker"
  exit
fi
# Whatever is there already stays: the script may be run again, after a failure half-way as well as after `down`.
there() { g "$@" > /dev/null 2>&1; }
g services enable compute.googleapis.com iam.googleapis.com cloudresourcemanager.googleapis.com
there compute networks describe raygrad || g compute networks create raygrad --subnet-mode=auto
if there compute firewall-rules describe raygrad-ssh; then  # your address may be another one now
  g compute firewall-rules update raygrad-ssh --source-ranges="$from"
else
  g compute firewall-rules create raygrad-ssh --network=raygrad --allow=tcp:22 --source-ranges="$from"
fi
there compute firewall-rules describe raygrad-among ||
  g compute firewall-rules create raygrad-among --network=raygrad --allow=tcp,udp,icmp --source-ranges=10.128.0.0/9
there storage buckets describe "gs://$project-raygrad" ||
  g storage buckets create "gs://$project-raygrad" --location=us-central1 --uniform-bucket-level-access --public-access-prevention
there iam service-accounts describe "$worker" || g iam service-accounts create raygrad-worker
g storage buckets add-iam-policy-binding "gs://$project-raygrad" --member="serviceAccount:$worker" --role=roles/storage.objectUser
sed -i.bak "s/FILL-IN-PROJECT/$project/" gcp.yaml && rm gcp.yaml.bak
