# Functions shared by .ci/run and .ci/nightly; sourced from the root of the checkout.
export OMP_WAIT_POLICY=passive  # tests run in parallel: a waiting thread must not occupy a core
# many tests start a Python process: without compiled modules each spends seconds on compiling its imports
export UV_COMPILE_BYTECODE=1 PYTHONDONTWRITEBYTECODE=
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s\n' "$*"; }

command -v uv >/dev/null || python3 -m pip install --quiet uv

# Installs missing Debian packages, each given as COMMAND:PACKAGE or /FILE:PACKAGE.
install_debian() {
  local missing=() pair sudo
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || missing+=("${pair##*:}")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
}

lint() {
  uv run ruff check . && uv run ruff format --check . && uv run pyright && uv run lint-imports
}

# Builds the documentation site in build/site; broken links fail.
build_site() {
  uv run --group docs python tools/site_pages.py --no-run build/pages  # tests run notebooks and components
  NO_MKDOCS_2_WARNING=1 uv run --group docs mkdocs build --quiet --strict
}

# Builds the wheel into $scratch and checks its contents.
check_wheel() {
  local contents file embedded=cryobench/priors/embedded n2n=cryobench/priors/embedded_n2n
  uv build --quiet --wheel --out-dir "$scratch"
  contents=$(python3 -m zipfile --list "$scratch"/*.whl | awk 'NR > 1 {print $1}')
  for file in cryobench/plan/suite.schema.json cryobench/py.typed \
    cryobench/sources/structures/{6zu5.npz,catalogue.json} cryobench/sources/microscope.json \
    cryobench/leaderboard/page/static/{page.html,page.css,main.js} \
    {$embedded,cryobench/priors/folds}/{model_index.json,cryobench.json,unet/config.json} \
    {$embedded,cryobench/priors/folds}/unet/diffusion_pytorch_model.safetensors; do
    grep -qx "$file" <<<"$contents" || { echo "the wheel lacks $file"; return 1; }
  done
  if [ -d $n2n ]; then
    for file in $n2n/{config.json,model.safetensors,cryobench.json,README.md}; do
      grep -qx "$file" <<<"$contents" || { echo "the wheel lacks $file"; return 1; }
    done
    [ "$(du -sb $n2n | cut -f1)" -lt 3000000 ] || { echo "$n2n is larger than 3 MB"; return 1; }
  fi
  if grep -vE '^cryobench(/|-)' <<<"$contents"; then echo "the wheel has files outside the package"; return 1; fi
}

# Installs every package in plugins/, runs their tests, and one solver of theirs.
test_plugins() {
  local plugin
  export CRYOBENCH_TRACKER=$scratch/tracked.sqlite
  for plugin in plugins/*/; do
    uv pip install --quiet "./$plugin"
  done
  uv run --no-sync pytest plugins/*/tests
  uv run --no-sync cryobench run --solver landweber:200 --operator sumpool:16 --images 0 --out "$scratch/runs"
}
