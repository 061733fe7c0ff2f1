"""The queue of rqjobs with the commit modes of django-rq."""

from django_rq.queues import DjangoRQ

import rqjobs


class Queue(DjangoRQ, rqjobs.Queue):
    pass
