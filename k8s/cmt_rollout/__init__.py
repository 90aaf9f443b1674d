"""Rolling model version upgrades: from one release to another without losing a request or mixing two releases.

`rollout.upgrade` leads one or several targets through the steps; `server_target.ServerTarget` is one Triton server,
`kubernetes_target.KubernetesTarget` the pods of a cluster that `deploy.deploy` set up.
"""
