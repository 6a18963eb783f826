#!/bin/sh
# A search every night, which goes on where the last one ended: call it from cron. QUANTLAB_SEARCH names the space.
# It publishes nothing by itself: the last line prints the best run, for quantlab publish.
set -e
space=${QUANTLAB_SEARCH:-examples/search.toml}
timeout 8h quantlab search run "$space" --runs runs || echo "ended early; the next night goes on"
quantlab search report "$space"
quantlab runs best --runs runs
