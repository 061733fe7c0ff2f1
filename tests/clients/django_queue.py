"""rqjobs's queue with django-rq's commit modes."""

from django_rq.queues import DjangoRQ

import rqjobs


class Queue(DjangoRQ, rqjobs.Queue):
    pass
