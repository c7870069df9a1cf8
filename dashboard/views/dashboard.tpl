<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>dolmetsch</title>
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <link rel="icon" href="static/favicon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="static/base.css">
  <link rel="stylesheet" href="static/page.css">
  <script src="static/theme.js"></script>
  <script type="module" src="static/main.js"></script>
</head>
<body data-link="connecting">
<a class="skip" href="#main">Skip to the content</a>

<header class="top">
  <h1>dolmetsch</h1>
  <span class="version">{{version}}</span>
  <nav aria-label="Sections">
    <a href="#nodes">Nodes</a>
    <a href="#charts">Charts</a>
    <a href="#jobs">Jobs</a>
    <a href="#translate">Translate</a>
    <a href="#gateways">Gateways</a>
  </nav>
  <p class="link" id="link"><span class="mark" id="link-mark"></span><span id="link-text">connecting</span></p>
  <button id="theme" type="button" class="quiet">Theme: auto</button>
</header>

<main id="main" tabindex="-1">
  <noscript><p class="zero">This page needs JavaScript. The same is to be had as JSON at <code>/api/cluster</code>.</p></noscript>

  <section id="overview" aria-labelledby="overview-title">
    <h2 id="overview-title" class="sr">Overview</h2>
    <dl class="vitals" id="vitals">
      <div><dt>Nodes up</dt><dd class="big"><data data-part="nodes_up">–</data></dd><dd data-part="nodes_more">&nbsp;</dd></div>
      <div><dt>Workers</dt><dd class="big"><data data-part="workers">–</data></dd><dd data-part="workers_more">&nbsp;</dd></div>
      <div><dt>Queued</dt><dd class="big"><data data-part="queued">–</data></dd><dd data-part="queued_more">&nbsp;</dd></div>
      <div><dt>In flight</dt><dd class="big"><data data-part="in_flight">–</data></dd><dd data-part="in_flight_more">&nbsp;</dd></div>
      <div><dt>Translations/s</dt><dd class="big"><data data-part="translations_per_s">–</data></dd><dd data-part="chars_more">&nbsp;</dd></div>
      <div><dt>Error rate</dt><dd class="big"><data data-part="error_rate">–</data></dd><dd data-part="error_more">last minute</dd></div>
      <div class="wide"><dt>Latency p50, p95, p99</dt><dd class="big trio"><data data-part="p50_ms">–</data><data data-part="p95_ms">–</data><data data-part="p99_ms">–</data></dd><dd data-part="latency_more">&nbsp;</dd></div>
      <div><dt>Dead letters</dt><dd class="big"><data data-part="dead_letters">–</data></dd><dd data-part="dead_more">&nbsp;</dd></div>
      <div><dt>Servers</dt><dd class="big"><data data-part="servers">–</data></dd><dd>&nbsp;</dd></div>
      <div><dt>Gateways</dt><dd class="big"><data data-part="gateways_up">–</data></dd><dd data-part="gateways_more">&nbsp;</dd></div>
      <div><dt>Broker</dt><dd class="big"><data data-part="broker_up">–</data></dd><dd data-part="broker_more">&nbsp;</dd></div>
    </dl>
    <div class="trouble">
      <h3>Problems <span class="count" id="problem-count"></span></h3>
      <div class="trouble-list" id="problem-box">
        <p id="no-problems" class="calm">–</p>
        <ul id="problems"></ul>
      </div>
    </div>
  </section>

  <section id="waiting" aria-labelledby="waiting-title" hidden>
    <div class="section-head">
      <h2 id="waiting-title" tabindex="-1">Waiting to be let in <span class="count" id="waiting-count"></span></h2>
    </div>
    <p class="note">Anybody can take any name: let in only a computer that itself shows the same key, in its log.</p>
    <ul id="waiting-list" class="waiting-list"></ul>
  </section>

  <section id="nodes" aria-labelledby="nodes-title">
    <div class="section-head">
      <h2 id="nodes-title">Nodes <span class="count" id="node-count"></span></h2>
    </div>
    <p id="no-nodes" class="zero" hidden>No nodes yet. On each computer that is to translate, in a copy of this folder, type
      <code>make node BROKER=tcp://HOST</code>, where HOST is the broker’s.</p>
    <div class="node-row node-labels" id="node-labels" aria-hidden="true" hidden>
      <span>Node</span>
      <div class="metrics"><span>CPU, by core</span><span>RAM</span><span>Temp.</span><span>Queue</span><span>In flight</span><span>Chars/s</span><span>Heartbeat</span></div>
      <span></span>
    </div>
    <ul id="node-list" class="node-list"></ul>
  </section>

  <section id="charts" aria-labelledby="charts-title">
    <div class="section-head">
      <h2 id="charts-title">Charts</h2>
      <fieldset class="choice" id="spans"><legend class="sr">Span of time</legend>
        <label><input type="radio" name="span" value="5m" checked><span>5 min</span></label>
        <label><input type="radio" name="span" value="1h"><span>1 h</span></label>
        <label><input type="radio" name="span" value="24h"><span>24 h</span></label>
      </fieldset>
      <label class="pick"><span>Node</span> <select id="chart-node"><option value="">all</option></select></label>
    </div>
    <div class="chart-grid" id="chart-grid"></div>
  </section>

  <div class="halves">
    <section id="jobs" aria-labelledby="jobs-title">
      <div class="section-head">
        <h2 id="jobs-title">Jobs</h2>
        <fieldset class="choice" id="kinds"><legend class="sr">Which jobs</legend>
          <label><input type="radio" name="kind" value="recent" checked><span>Recent</span></label>
          <label><input type="radio" name="kind" value="slow"><span>Slow</span></label>
          <label><input type="radio" name="kind" value="dead"><span>Dead <b id="dead-count" class="count"></b></span></label>
        </fieldset>
        <p class="note" id="jobs-note">&nbsp;</p>
        <div class="buttons" id="dead-actions" hidden>
          <button type="button" id="requeue-all">Requeue all</button>
          <button type="button" id="purge-all">Purge all</button>
        </div>
      </div>
      <ul class="legend stages-legend" aria-label="Where a job’s time goes">
        <li><i class="swatch s-gateway"></i>gateway</li>
        <li><i class="swatch s-queue"></i>queue</li>
        <li><i class="swatch s-wire"></i>wire</li>
        <li><i class="swatch s-batch"></i>batch</li>
        <li><i class="swatch s-decode"></i>decode</li>
        <li><i class="swatch s-reply"></i>reply</li>
      </ul>
      <p id="no-jobs" class="zero" hidden></p>
      <ul id="job-list" class="job-list"></ul>
      <button type="button" id="more-jobs" class="quiet" hidden></button>
    </section>

    <div class="side">
      <section id="translate" aria-labelledby="translate-title">
        <div class="section-head"><h2 id="translate-title">Try a translation</h2></div>
        <form id="translate-form">
          <label for="translate-text" class="sr">Text to translate</label>
          <textarea id="translate-text" name="text" rows="3" required placeholder="Guten Morgen"></textarea>
          <div class="row">
            <label class="pick"><span>Route</span> <select id="translate-route"></select></label>
            <button id="translate-go" type="submit">Translate</button>
          </div>
          <output id="translation" class="translation" for="translate-text translate-route"></output>
          <p class="note" id="translation-note">&nbsp;</p>
        </form>
      </section>

      <section id="gateways" aria-labelledby="gateways-title">
        <div class="section-head"><h2 id="gateways-title">Gateways</h2></div>
        <p id="no-gateways" class="zero" hidden>No gateways. <code>gateway_discord.py</code> is the one for Discord,
          <code>gateway_http.py</code> for programs, <code>gateway_cli.py</code> for a terminal.</p>
        <ul id="gateway-list" class="gateway-list"></ul>
      </section>

      <section id="broker" aria-labelledby="broker-title">
        <div class="section-head"><h2 id="broker-title">Broker</h2></div>
        <p id="no-broker" class="zero" hidden>Not heard yet.</p>
        <dl class="facts" id="broker-facts">
          <div><dt>Host</dt><dd data-part="host">–</dd></div>
          <div><dt>Address</dt><dd data-part="address">–</dd></div>
          <div><dt>Version</dt><dd data-part="version">–</dd></div>
          <div><dt>Process</dt><dd data-part="pid">–</dd></div>
          <div><dt>Up</dt><dd data-part="up">–</dd></div>
          <div><dt>CPU</dt><dd data-part="cpu">–</dd></div>
          <div><dt>Memory</dt><dd data-part="rss">–</dd></div>
          <div><dt>Ledger</dt><dd data-part="ledger">–</dd></div>
          <div><dt>Disk free</dt><dd data-part="disk">–</dd></div>
          <div><dt>Routes</dt><dd data-part="routes">–</dd></div>
          <div><dt>Accepted</dt><dd data-part="accepted">–</dd></div>
          <div><dt>Rejected</dt><dd data-part="rejected">–</dd></div>
          <div><dt>Done</dt><dd data-part="done">–</dd></div>
          <div><dt>From the cache</dt><dd data-part="cache_hits">–</dd></div>
          <div><dt>Failed</dt><dd data-part="failed">–</dd></div>
          <div><dt>Not understood</dt><dd data-part="bad_frames">–</dd></div>
        </dl>
      </section>
    </div>
  </div>
</main>

<div class="said" id="said" hidden><p id="said-text"></p><button type="button" class="quiet" id="said-close">Close</button></div>
<p class="sr" id="announce" role="status" aria-live="polite"></p>
<p class="sr" id="alert" role="alert"></p>

<dialog id="token-dialog" aria-labelledby="token-title">
  <form method="dialog">
    <h2 id="token-title">Token</h2>
    <p id="token-why">Actions on this dashboard need its token. It is kept until this tab is closed.</p>
    <label for="token-input">Token</label>
    <input id="token-input" type="password" autocomplete="off" spellcheck="false">
    <div class="buttons"><button type="submit" value="ok">Use it</button><button type="button" class="quiet" data-cancel>Cancel</button></div>
  </form>
</dialog>

<dialog id="confirm-dialog" aria-labelledby="confirm-title">
  <form method="dialog">
    <h2 id="confirm-title"></h2>
    <p id="confirm-text"></p>
    <div class="buttons"><button type="button" data-cancel>Cancel</button><button type="submit" value="ok" class="danger" id="confirm-go"></button></div>
  </form>
</dialog>

<template id="problem-template">
  <li class="problem"><b data-part="level"></b><span data-part="text"></span><button type="button" class="quiet" data-part="show">Show</button></li>
</template>

<template id="waiting-template">
  <li class="waiter">
    <bdi class="cut" data-part="name"></bdi>
    <p><span class="note">at</span> <span data-part="address"></span></p>
    <p><span class="note">key</span> <span class="mono" data-part="key"></span></p>
    <div class="buttons">
      <button type="button" data-part="approve">Let in</button>
      <button type="button" data-part="refuse">Turn away</button>
    </div>
  </li>
</template>

<template id="node-template">
  <li class="node">
    <div class="node-row">
      <div class="node-head">
        <h3><button type="button" class="opener" aria-expanded="false" data-part="toggle"><span class="chevron"></span><span class="mark" data-part="mark"></span><span class="cut" data-part="name"></span></button></h3>
        <p class="about cut" data-part="about"></p>
      </div>
      <dl class="metrics">
        <div class="m-cpu"><dt>CPU</dt><dd><span class="figure" data-part="cpu"></span><span class="cores-bars" role="img" data-part="cores"></span></dd></div>
        <div class="m-ram"><dt>RAM</dt><dd><span class="figure" data-part="ram"></span><span class="bar"><i data-part="ram_bar"></i></span></dd></div>
        <div class="m-temp"><dt>Temp.</dt><dd><span data-part="temp"></span></dd></div>
        <div class="m-queue extra"><dt>Queue</dt><dd><span data-part="queued"></span></dd></div>
        <div class="m-flight extra"><dt>In flight</dt><dd><span data-part="in_flight"></span></dd></div>
        <div class="m-chars"><dt>Chars/s</dt><dd><span data-part="chars"></span></dd></div>
        <div class="m-seen extra"><dt>Heartbeat</dt><dd><span data-part="seen"></span></dd></div>
      </dl>
      <div class="buttons node-actions">
        <button type="button" data-part="drain">Drain</button>
        <button type="button" data-part="restart">Restart children</button>
      </div>
    </div>
    <div class="node-more" data-part="more" hidden>
      <dl class="facts">
        <div><dt>Host</dt><dd data-part="host"></dd></div>
        <div><dt>Board</dt><dd data-part="board"></dd></div>
        <div><dt>System</dt><dd data-part="system"></dd></div>
        <div><dt>Version</dt><dd data-part="version"></dd></div>
        <div><dt>Up</dt><dd data-part="up"></dd></div>
        <div><dt>Joined</dt><dd data-part="joined"></dd></div>
        <div><dt>Memory</dt><dd data-part="memory"></dd></div>
        <div><dt>Throttling</dt><dd data-part="throttling"></dd></div>
        <div><dt>Jobs held</dt><dd data-part="held"></dd></div>
        <div><dt>Jobs done</dt><dd data-part="done"></dd></div>
        <div class="all"><dt>Routes</dt><dd data-part="routes"></dd></div>
      </dl>
      <div class="scroll" tabindex="0" role="region" aria-label="Cores and children">
        <table class="children">
          <thead><tr><th scope="col">Core</th><th scope="col">CPU</th><th scope="col">Child</th><th scope="col">State</th><th scope="col">In flight</th><th scope="col">Jobs</th><th scope="col">Memory</th><th scope="col">Restarts</th></tr></thead>
          <tbody data-part="children"></tbody>
        </table>
      </div>
    </div>
  </li>
</template>

<template id="child-template">
  <tr><th scope="row" data-part="core"></th><td data-part="percent"></td><td data-part="pid"></td><td data-part="state"></td><td data-part="in_flight"></td><td data-part="jobs"></td><td data-part="rss"></td><td data-part="restarts"></td></tr>
</template>

<template id="chart-template">
  <figure class="chart">
    <figcaption><h3 data-part="title"></h3><span class="note" data-part="unit"></span><span class="note time" data-part="time"></span></figcaption>
    <ul class="legend" data-part="legend"></ul>
    <div class="plot" data-part="plot" tabindex="0" role="slider" aria-valuemin="0" aria-valuemax="0" aria-valuenow="0">
      <svg data-part="svg" aria-hidden="true" focusable="false"></svg>
      <p class="nothing" data-part="nothing">no data yet</p>
    </div>
    <p class="sr" data-part="summary"></p>
  </figure>
</template>

<template id="legend-template">
  <li><i class="swatch" data-part="swatch"></i><span class="cut" data-part="name"></span> <b data-part="value"></b></li>
</template>

<template id="job-template">
  <li class="job">
    <button type="button" class="job-line" aria-expanded="false" data-part="toggle">
      <span class="chevron"></span>
      <span class="job-when" data-part="when"></span>
      <span class="job-route" data-part="route"></span>
      <span class="job-chars" data-part="chars"></span>
      <span class="job-node cut" data-part="node"></span>
      <span class="job-flags cut" data-part="flags"></span>
      <span class="stages" aria-hidden="true" data-part="bar"></span>
      <span class="job-total" data-part="total"></span>
    </button>
    <div class="buttons job-actions" data-part="actions" hidden>
      <button type="button" data-part="requeue">Requeue</button>
      <button type="button" data-part="purge">Purge</button>
    </div>
    <div class="job-more" data-part="more" hidden></div>
  </li>
</template>

<template id="story-template">
  <div class="job-inside">
    <p class="why" data-part="why"></p>
    <div>
      <h3>Where the time went</h3>
      <ol class="stage-list" data-part="stages"></ol>
    </div>
    <div>
      <h3>Story</h3>
      <p class="note" data-part="told"></p>
      <ol class="story" data-part="story"></ol>
    </div>
    <dl class="facts">
      <div class="all"><dt>Job</dt><dd class="mono" data-part="id"></dd></div>
      <div><dt>Gateway</dt><dd data-part="gateway"></dd></div>
      <div><dt>Lane</dt><dd data-part="lane"></dd></div>
      <div><dt>Node</dt><dd data-part="node"></dd></div>
      <div><dt>Attempts</dt><dd data-part="attempts"></dd></div>
      <div class="all"><dt>Model</dt><dd data-part="model"></dd></div>
    </dl>
  </div>
</template>

<template id="stage-template">
  <li><i class="swatch" data-part="swatch"></i><span data-part="name"></span><b data-part="time"></b><span class="note" data-part="what"></span></li>
</template>

<template id="story-line-template">
  <li><b data-part="when"></b><span data-part="what"></span></li>
</template>

<template id="gateway-template">
  <li class="gateway">
    <p><span class="mark" data-part="mark"></span><b class="cut" data-part="name"></b> <span class="note" data-part="state"></span></p>
    <p class="note" data-part="more"></p>
  </li>
</template>
</body>
</html>
