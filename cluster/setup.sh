#!/usr/bin/env bash
# Installs raygrad on one node of a `ray up` cluster: bash ~/raygrad/cluster/setup.sh [package ...]
# uv brings the same Python, to the patch level, to any Linux: Ray refuses nodes whose Python differs.
# Running it again changes nothing that is in place.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.13.9
python_version=3.11.14
env=$HOME/raygrad-env

export PATH="$HOME/.local/bin:$PATH"
if [ "$(uv --version 2>/dev/null | cut -d' ' -f2)" != "$uv_version" ]; then
  curl -LsSf "https://github.com/astral-sh/uv/releases/download/$uv_version/uv-installer.sh" | env UV_NO_MODIFY_PATH=1 sh
fi
uv venv --quiet --allow-existing --python "$python_version" "$env"
uv pip install --quiet --python "$env/bin/python" --constraint cluster/constraints.txt ".[tune]" "$@"

# What every shell on the node needs, those of `ray exec` and `ray attach` included.
cat > "$env/cluster.sh" <<'SH'
export PATH="$HOME/raygrad-env/bin:$PATH"
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
SH
grep -qsF raygrad-env/cluster.sh ~/.bashrc || echo '[ ! -f ~/raygrad-env/cluster.sh ] || . ~/raygrad-env/cluster.sh' >> ~/.bashrc
chmod 600 ~/.ray/auth_token
