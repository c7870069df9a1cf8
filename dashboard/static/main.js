// Main: asks how the cluster is, once a second, and hands the answer to each part of the page.

import { allow, start_actions } from "./actions.js";
import { show_gateways } from "./gateways.js";
import { nodes_to_choose, start_history } from "./history.js";
import { jobs_now, start_jobs } from "./jobs.js";
import { go_to_node, show_nodes } from "./nodes.js";
import { show_gone, show_link, show_overview } from "./overview.js";
import { Poll } from "./poll.js";
import { routes_now, start_translate } from "./translate.js";
import { show_waiting } from "./waiting.js";

let latest = null;

function show(cluster) {
  latest = cluster;
  allow(cluster);
  show_overview(cluster, go_to_node);
  show_waiting(cluster.waiting);
  show_nodes(cluster.nodes);
  show_gateways(cluster.gateways);
  routes_now(cluster.routes);
  nodes_to_choose(cluster.nodes.map((node) => node.name));
  jobs_now(cluster);
}

start_actions();
start_translate();
start_history();
start_jobs();
new Poll({
  url: () => "api/cluster",
  every: () => 1000,
  take: show,
  same: () => show_link(latest),
  fail: show_gone,
}).now();
