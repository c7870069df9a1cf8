// Gateways: who brings jobs, and how each of them is doing.

import { attribute, byId, cut, hidden, keyed, stamp, text } from "./dom.js";
import { count, ms, plural, span } from "./format.js";

export function show_gateways(gateways) {
  hidden(byId("no-gateways"), gateways.length > 0);
  keyed(byId("gateway-list"), gateways, (gateway) => gateway.name, () => stamp("gateway-template"), (line, gateway) => {
    const up = gateway.state === "up";
    attribute(line.mark, "data-state", up ? "ready" : "lost");
    cut(line.name, gateway.name);
    text(line.state, [gateway.kind, gateway.state].filter(Boolean).join(", "));
    const more = [
      gateway.servers ? plural(gateway.servers, "server") : "",
      gateway.latency_ms === null ? "" : `${ms(gateway.latency_ms)} to its service`,
      `${count(gateway.queued)} queued`,
      `${count(gateway.answered)} answered`,
      `${count(gateway.failed)} failed`,
      `${count(gateway.unanswered)} unanswered`,
      `heard ${span(gateway.seen_s_ago)} ago`,
    ];
    // Lines break between the figures, not in them.
    text(line.more, more.filter(Boolean).map((words) => words.replaceAll(" ", "\u00a0")).join(" · "));
  });
}
