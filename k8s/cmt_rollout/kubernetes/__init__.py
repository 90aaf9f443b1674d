"""The cluster half of upgrades: releases move by Deployments, Services and a Lease."""
