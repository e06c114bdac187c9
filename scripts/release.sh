#!/usr/bin/env bash
# A release: release.sh VERSION dates the change log, sets the version, commits and tags; with --check it only looks
# whether it could. Nothing is pushed.
set -euo pipefail

fail() {
  echo "No release: $1" >&2
  exit 1
}

version=${1:-}
[[ $version =~ ^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$ ]] ||
  fail "say which: make release VERSION=x.y.z"
cd "$(git rev-parse --show-toplevel)"
branch=$(git symbolic-ref --short -q HEAD) || fail "HEAD is on no branch"
[[ -z $(git status --porcelain) ]] || fail "the tree is not clean: commit or remove what git status shows"
[[ -z $(git tag --list "v$version") ]] || fail "v$version is there already"
newest=$( (git tag --list 'v[0-9]*'; echo "v$version") | sort --version-sort | tail -1)
[[ $newest == "v$version" ]] || fail "$newest is newer than v$version"
git var GIT_AUTHOR_IDENT >/dev/null 2>&1 && git var GIT_COMMITTER_IDENT >/dev/null 2>&1 ||
  fail "git does not know who you are: git config user.name and user.email"
grep -qx '## Unreleased' CHANGELOG.md || fail "CHANGELOG.md has no '## Unreleased'"
awk '/^## /{part = $2} part == "Unreleased" && /^- /{found = 1} END{exit !found}' CHANGELOG.md ||
  fail "CHANGELOG.md has nothing under Unreleased"
grep -q '^version = "' pyproject.toml || fail "pyproject.toml has no version"
[[ ${2:-} != --check ]] || exit 0

python3 - "$version" "$(date -u +%F)" <<'PYTHON'
import re
import sys
from pathlib import Path

version, date = sys.argv[1:]
for name, old, new in (
    ("CHANGELOG.md", r"^## Unreleased$", f"## Unreleased\n\n## {version} ({date})"),
    ("pyproject.toml", r'^version = ".*"$', f'version = "{version}"'),
):
    path = Path(name)
    path.write_text(re.sub(old, new, path.read_text(encoding="utf-8"), count=1, flags=re.M), encoding="utf-8")
PYTHON
git commit --quiet --message "Release $version" CHANGELOG.md pyproject.toml
git tag --annotate "v$version" --message "$version"
echo "v$version is tagged. To publish it: git push origin $branch v$version"
