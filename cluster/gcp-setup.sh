#!/usr/bin/env bash
# What gcp.yaml needs beside machines: bash cluster/gcp-setup.sh PROJECT SSH_FROM (such as 203.0.113.7/32)
#                          and to remove it: bash cluster/gcp-setup.sh PROJECT down (the bucket is kept: it holds results)
set -euo pipefail
cd "$(dirname "$0")"
project=$1 from=$2
case $from in */0) echo "SSH_FROM is $from, the whole internet; give your own address" >&2; exit 2 ;; esac
worker=raygrad-worker@$project.iam.gserviceaccount.com
g() { gcloud --project "$project" --quiet "$@"; }

if [ "$from" = down ]; then
  g compute firewall-rules delete raygrad-ssh raygrad-among
  g compute networks delete raygrad
  g iam service-accounts delete "$worker"
  exit
fi
g services enable compute.googleapis.com iam.googleapis.com cloudresourcemanager.googleapis.com
g compute networks create raygrad --subnet-mode=auto
g compute firewall-rules create raygrad-ssh --network=raygrad --allow=tcp:22 --source-ranges="$from"
g compute firewall-rules create raygrad-among --network=raygrad --allow=tcp,udp,icmp --source-ranges=10.128.0.0/9
g storage buckets create "gs://$project-raygrad" --location=us-central1 --uniform-bucket-level-access --public-access-prevention
g iam service-accounts create raygrad-worker
g storage buckets add-iam-policy-binding "gs://$project-raygrad" --member="serviceAccount:$worker" --role=roles/storage.objectUser
sed -i.bak "s/FILL-IN-PROJECT/$project/" gcp.yaml && rm gcp.yaml.bak
