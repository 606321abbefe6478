"""The fact log in etcd. Needs the extra `homing[etcd]`: imported only where it is configured."""

from extproc.log.etcd.log import EtcdLog

__all__ = ["EtcdLog"]
